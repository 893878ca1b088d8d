"""What the page beside the chat asks for: the model's state, and another budget."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from served import Server

from edgert.measuring.startup import SERVE, process_cost
from edgert.sizes import parse_size

pytestmark = pytest.mark.xdist_group("server")


@pytest.fixture(scope="module")
def own(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose budget changes."""
    server = Server(smollm2, "-c", "512", "--temperature", "0", "-m", "400M",
                    errors=tmp_path_factory.mktemp("server") / "errors")
    assert server.ask("/health").status_code in (200, 503)  # the socket is open before the model is there
    yield server.until_ready()
    assert server.end() == 0


def answer(server: Server, tokens: int = 16) -> str:
    text = server.client().chat.completions.create(
        model="any", max_tokens=tokens, messages=[{"role": "user", "content": "Tell me of the sea."}]
    ).choices[0].message.content
    assert text
    return text


def test_status(own: Server, smollm2: Path) -> None:
    before = own.status()
    assert before["model"] == smollm2.stem and before["state"] == "ready" and before["error"] is None
    assert before["budget"] == 400 << 20 and before["smallest"] < before["whole"] < before["budget"]
    assert 0 < sum(before["parts"].values()) <= before["budget"]
    cost = process_cost(smollm2, SERVE)  # what edgert plan goes by
    assert abs(before["parts"]["process"] - cost.process - cost.structured) < 5 << 20
    assert abs(before["used"] - psutil.Process(own.process.pid).memory_info().rss) < 20 << 20
    assert before["streaming"] == {"bytes": 0, "bandwidth": None} and before["reading"] is None
    assert [layer["pinned"] for layer in before["layers"]] == [1.0] * 30
    assert (before["queue"], before["threads"], before["context"]) == (0, 2, 512)
    assert before["memory_total"] == psutil.virtual_memory().total
    answer(own)
    assert own.status()["tokens"] == before["tokens"] + 16


def test_another_budget_and_the_same_answer(own: Server) -> None:
    whole = answer(own)
    smallest = own.status()["smallest"]
    status = own.ask("/edgert/budget", {"memory": smallest + (20 << 20)}).json()
    assert status["state"] == "ready" and status["budget"] == smallest + (20 << 20)
    assert status["streaming"]["bandwidth"] > 0
    assert 0 < sum(layer["pinned"] for layer in status["layers"]) < 30
    layers = set()
    thread = threading.Thread(target=lambda: texts.append(answer(own)))
    texts: list[str] = []
    thread.start()
    while thread.is_alive():
        layers.add(own.status()["reading"])
    thread.join()
    assert texts == [whole]
    assert layers & set(range(30)) and layers <= {None, *range(30)}
    after = own.status()
    assert after["streaming"]["bytes"] > 0 and after["reading"] is None
    assert own.ask("/edgert/budget", {"memory": "400M"}).json()["budget"] == 400 << 20
    assert answer(own) == whole


def test_budgets_do_not_add_up(own: Server) -> None:
    """However often the model is loaded anew, and after large logits too, the process begins with as little."""
    taken = []
    for memory in range(400, 405):
        taken.append(own.ask("/edgert/budget", {"memory": f"{memory}M"}).json()["parts"]["process"])
        assert own.ask("/v1/completions", {"prompt": "Once upon a time " * 100, "echo": True, "logprobs": 1,
                                           "max_tokens": 1}).status_code == 200
        answer(own)
    assert max(taken[1:]) - taken[0] < 12 << 20, taken
    assert own.ask("/edgert/budget", {"memory": "400M"}).status_code == 200


@pytest.mark.parametrize(("memory", "said"), [("20M", "too small"), ("much", "is not a size"), (0, "memory: "),
                                              ("9" * 30 + "T", "more memory than any machine has")])
def test_a_budget_that_cannot_be(own: Server, memory: object, said: str) -> None:
    refused = own.ask("/edgert/budget", {"memory": memory})
    assert refused.status_code == 400 and said in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == "memory"
    status = own.status()
    assert (status["state"], status["budget"]) == ("ready", parse_size("400M"))
    assert answer(own)


def test_what_is_under_way_is_finished_first(own: Server) -> None:
    alone = answer(own, 48)
    done: list[str] = []
    thread = threading.Thread(target=lambda: done.append(answer(own, 48)))
    thread.start()
    while not own.ask("/metrics").text.count("edgert_queue_length") or own.status()["tokens"] == 0:
        time.sleep(0.01)
    time.sleep(0.1)
    reload = threading.Thread(target=lambda: own.ask("/edgert/budget", {"memory": "401M"}))
    reload.start()
    while own.status()["state"] != "loading":
        time.sleep(0.005)
    refused = own.ask("/v1/completions", {"prompt": "a"})
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "loading"
    assert int(refused.headers["retry-after"]) > 0
    assert own.ask("/health").status_code == 503
    thread.join()
    reload.join()
    assert done == [alone] and own.status()["budget"] == 401 << 20


def test_metrics(own: Server) -> None:
    text = own.ask("/metrics").text
    assert 'edgert_requests_total{path="/chat/completions",status="200"}' in text
    assert "edgert_model_ready 1.0" in text
