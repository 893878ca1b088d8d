"""Requests as nobody should send them: each is refused in one sentence, and the next one is answered."""

import collections
import json
import socket
import subprocess
from pathlib import Path

import psutil
import pytest
from hostile_requests import Hostile
from served import Server

pytestmark = pytest.mark.xdist_group("server")
REQUESTS = 400


def test_requests_of_chance(tiny_server: Server) -> None:
    """tests/large/serve_fuzz.py sends 10,000."""
    hostile, statuses = Hostile(1), collections.Counter[int | None]()
    for _ in range(REQUESTS):
        asked = hostile.send(int(tiny_server.url.rpartition(":")[2]))
        assert asked.status is None or asked.status < 500, asked
        if asked.status is not None and asked.status >= 400 and asked.body.startswith(b"{"):
            error = json.loads(asked.body)["error"]
            if asked.sent.split(b" ")[1].startswith(b"/api/"):
                assert isinstance(error, str), "as Ollama has it"
            else:
                assert set(error) == {"message", "type", "param", "code"}
        statuses[asked.status] += 1
    assert min(statuses[status] for status in (200, 400, 403, 404, 405)) > 0, statuses
    assert statuses[None] < REQUESTS / 10, statuses
    assert tiny_server.client().completions.create(model="any", prompt="a", max_tokens=1).choices
    assert "Traceback" not in tiny_server.said, tiny_server.said


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_100_mb(tiny_server: Server, tmp_path: Path, *, chunked: bool) -> None:
    """With curl. It is not read, whether its length is said before or not."""
    (body := tmp_path / "body").write_bytes(b'{"prompt": "' + b"a" * (100 << 20))
    process = psutil.Process(tiny_server.process.pid)
    before = process.memory_info().rss
    done = subprocess.run(["curl", "-s", "-w", "%{http_code}", "-X", "POST", "--data-binary", f"@{body}",
                           *(["-H", "Transfer-Encoding: chunked"] if chunked else []),
                           f"{tiny_server.url}/v1/completions"], capture_output=True, check=False, timeout=60)
    answer, code = done.stdout[:-3], done.stdout[-3:]
    assert (code, json.loads(answer)["error"]["code"]) == (b"413", "body_too_large")
    assert process.memory_info().rss - before < 4 << 20


@pytest.mark.parametrize(("body", "said"), [
    (b"", "the body is not JSON"), (b"{", "the body is not JSON"), (b"\xff", "the body"), (b"[]", "the body: expected"),
    (b'{"prompt": "\\ud800"}', "the body is not JSON"), (b"[" * 100_000, "the body"),
    (b'{"x": ' + b"[" * 50_000, "the body"), (b'{"prompt": 1}', "prompt: expected"), (b"{}", "prompt: object missing"),
    (b'{"prompt": "a", "max_tokens": 1e9}', "max_tokens: expected"), (b'{"prompt": "a", "stop": 3}', "stop: expected"),
    (b'{"prompt": "a", "temperature": 1e999}', "temperature"), (b'{"prompt": "a", "n": 17}', "n: expected")])
def test_broken_bodies(tiny_server: Server, body: bytes, said: str) -> None:
    answer = tiny_server.ask("/v1/completions", body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith(said) and error["type"] == "invalid_request_error", error


def test_a_body_that_is_not_as_http_has_it(tiny_server: Server) -> None:
    """uvicorn answers and ends the connection while the request is looked at; nobody is to blame but the client."""
    for path in ("/v1/completions", "/nothing"):
        with socket.create_connection(("127.0.0.1", int(tiny_server.url.rpartition(":")[2]))) as connection:
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
                               "no chunk\r\n\r\n".encode())
            answer = b""
            while part := connection.recv(4096):
                answer += part
        assert answer.startswith(b"HTTP/1.1 400 ")
    assert tiny_server.client().completions.create(model="any", prompt="a", max_tokens=1).choices
    assert "Traceback" not in tiny_server.said and "ERROR" not in tiny_server.said, tiny_server.said
