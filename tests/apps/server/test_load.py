"""Many clients at once, and clients that leave."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served import Server, limited

import edgert

pytestmark = pytest.mark.xdist_group("server")
CLIENTS = 24


def prompt_of(number: int) -> str:
    return f"Story {number}: once upon a time, {'there was a ' * (number % 7)}"


@pytest.fixture(params=[1, 3])
def busy(request: pytest.FixtureRequest, server: Server, smollm2: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that answers one request at a time, and one that answers several, streaming weights."""
    if request.param == 1:
        yield server
        return
    made = Server(smollm2, "-c", "256", "--temperature", "0", "-m", "160M", "--parallel", str(request.param),
                  before=limited("160M"), errors=tmp_path / "errors")
    yield made.until_ready()
    assert made.end() == 0 and "Traceback" not in made.said, made.said


def test_many_clients(busy: Server, model: edgert.Model) -> None:
    """Each answer is the one that is given alone; who does not get one is told to come again, and gets it then."""
    server = busy
    alone = [model.generate(prompt_of(number), max_tokens=4).text() for number in range(CLIENTS)]
    refused = []

    def ask(number: int) -> str:
        wanted: dict[str, Any] = {"model": "any", "prompt": prompt_of(number), "max_tokens": 4}
        with server.client(timeout=120) as client:
            for _ in range(200):
                try:
                    if number % 2:
                        return client.completions.create(**wanted).choices[0].text
                    return "".join(chunk.choices[0].text for chunk in client.completions.create(**wanted, stream=True))
                except openai.RateLimitError as error:
                    assert 1 <= int(error.response.headers["retry-after"]) <= 60 and error.code == "queue_full"
                    refused.append(number)
                    time.sleep(0.2)
        raise AssertionError("never answered")

    with ThreadPoolExecutor(CLIENTS) as clients:
        assert list(clients.map(ask, range(CLIENTS))) == alone
    assert refused, "the queue of 8 was never full"


def settled(server: Server, condition: Callable[[dict[str, Any]], bool], seconds: float = 20) -> dict[str, Any]:
    """The status as soon as it is as it should be."""
    end = time.monotonic() + seconds
    while not condition(status := server.status()):
        assert time.monotonic() < end, status
        time.sleep(0.01)
    return status


class Leaving:
    """A client that sends a request, and leaves when it has seen enough."""

    def __init__(self, server: Server, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self._socket = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
        self._socket.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
                             % (len(content), content))

    def until(self, text: bytes) -> None:
        seen = b""
        while text not in seen:
            seen += (part := self._socket.recv(4096))
            assert part, seen

    def leave(self) -> None:
        self._socket.close()


@pytest.fixture
def slow(smollm2: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that computes prompts in small chunks, whose progress can be seen."""
    server = Server(smollm2, "-c", "4096", "--prefill-chunk", "16", "--temperature", "0", "--queue", "2",
                    errors=tmp_path / "errors")
    yield server.until_ready()
    assert server.end() == 0 and "Traceback" not in server.said


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave(slow: Server, *, stream: bool) -> None:
    """In decode, in prefill, and in the queue: what they asked for is computed no more."""
    long = {"prompt": "word " * 3000, "max_tokens": 1, "stream": stream}
    decoding = Leaving(slow, {"prompt": "Count to a thousand: one,", "max_tokens": 4000, "stream": stream})
    settled(slow, lambda status: status["tokens"] > 4)
    prefilling, waiting = Leaving(slow, long), Leaving(slow, {**long, "prompt": "other " * 3000})
    settled(slow, lambda status: status["queue"] == 2)
    assert slow.ask("/v1/completions", {"prompt": "a"}).status_code == 429
    decoding.leave()
    settled(slow, lambda status: status["queue"] == 1)
    if stream:
        prefilling.until(b": prefill ")
    waiting.leave()
    settled(slow, lambda status: status["queue"] == 0)
    computing = slow.status()
    assert computing["tokens"] < 4000
    prefilling.leave()
    answered = slow.client().completions.create(model="any", prompt="a", max_tokens=1)
    assert answered.choices[0].text
    text = slow.ask("/metrics").text
    assert "edgert_model_answers 1.0" in text  # the last one alone: the others were not computed to their end
    assert slow.status()["tokens"] == computing["tokens"] + 1


def test_a_stream_tells_what_it_waits_for(slow: Server) -> None:
    first = Leaving(slow, {"prompt": "Count to a thousand: one,", "max_tokens": 4000})
    settled(slow, lambda status: status["tokens"] > 0)
    second = Leaving(slow, {"prompt": "a", "max_tokens": 1, "stream": True})
    second.until(b": queued 1\n\n")
    first.leave()
    second.until(b"data: [DONE]\n\n")
    second.leave()


def test_ending_with_answers_under_way(smollm2: Path, tmp_path: Path) -> None:
    """Those who wait are told so; the program ends at once."""
    server = Server(smollm2, "-c", "1024", errors=tmp_path / "errors").until_ready()
    with httpx.stream("POST", f"{server.url}/v1/completions", timeout=60, json={
            "prompt": "Count to a thousand: one,", "max_tokens": 900, "stream": True, "seed": 1}) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: {")
        started = time.monotonic()
        with ThreadPoolExecutor(1) as ending:
            status = ending.submit(server.end, 2)
            last = [line for line in lines if line][-1]
            assert status.result() == 0
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "the server is stopping"
    assert time.monotonic() - started < 10 and "Traceback" not in server.said, server.said
