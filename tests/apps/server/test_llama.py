"""`edgert serve` with a model that llama.cpp runs: what its clients see, and whatever happens to its process."""

import json
from collections.abc import Iterator

import psutil
import pytest
from served import Server
from tiny_gguf import write_foreign

pytest.importorskip("llama_cpp", reason="edgert[llama] is not installed")
pytestmark = pytest.mark.xdist_group("server")

HELLO = [{"role": "user", "content": "hello"}]
LONG = {"messages": HELLO, "max_tokens": 900, "stream": True, "logit_bias": {"257": -100, "259": -100}}
"""An answer without an end."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("llama")
    made = Server(write_foreign(folder / "tiny.gguf", layers=8, hidden=256), "--temperature", "0",
                  errors=folder / "errors")
    yield made.until_ready()
    child = child_of(made)
    assert made.end() == 0 and "Traceback" not in made.said, made.said
    assert not child.is_running()


def child_of(server: Server) -> psutil.Process:
    return next(child for child in server.serving.children() if "edgert.fallback.process" in child.cmdline())


def answer(server: Server) -> str:
    made = server.client().chat.completions.create(model="any", messages=HELLO, max_tokens=8)  # type: ignore[arg-type]
    return made.choices[0].message.content or ""


def test_it_says_who_answers(server: Server) -> None:
    assert "architecture 'orion' is not supported; so llama.cpp runs it" in server.said
    assert answer(server) == answer(server)
    assert server.ask("/v1/models").json()["data"][0] | {"created": 0} == {
        "id": "tiny", "object": "model", "created": 0, "owned_by": "edgert", "max_model_len": 1024}
    status = server.status()
    assert status["state"] == "ready" and status["used"] > child_of(server).memory_info().rss
    tokens = server.ask("/v1/tokenize", {"prompt": "a <|im_end|>"}).json()["tokens"]
    assert server.ask("/v1/detokenize", {"tokens": tokens}).json()["prompt"] == "a <|im_end|>"


def test_a_schema_and_scores(server: Server) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "any", "schema": {"enum": ["yes", "no"]}}}
    made = server.ask("/v1/chat/completions", {"messages": HELLO, "response_format": form}).json()
    assert json.loads(made["choices"][0]["message"]["content"]) in ("yes", "no")
    scored = server.ask("/v1/completions", {"prompt": "hello", "echo": True, "logprobs": 1, "max_tokens": 0}).json()
    assert len(scored["choices"][0]["logprobs"]["token_logprobs"]) == 5


def test_its_process_is_killed_amid_an_answer(server: Server) -> None:
    before = answer(server)
    with server.client()._client.stream("POST", f"{server.url}/v1/chat/completions", json=LONG) as response:
        lines = response.iter_lines()
        assert "role" in next(lines)
        child_of(server).kill()
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["message"] == (
        "llama.cpp's process ended with SIGKILL; ask again, and a new one is started")
    assert answer(server) == before and server.ask("/health").json() == {"status": "ok"}


def test_a_client_that_leaves(server: Server) -> None:
    before = answer(server)
    with server.client()._client.stream("POST", f"{server.url}/v1/chat/completions", json=LONG) as response:
        next(response.iter_lines())
    assert answer(server) == before
    assert server.status()["tokens"] < 900, "nobody waited for the end of it"


def test_a_budget_moves(server: Server) -> None:
    """Kept by the kernel, or refused in one sentence; either way it answers after that."""
    before = answer(server)
    moved = server.ask("/edgert/budget", {"memory": "1G"})
    assert moved.status_code == 200 or "cannot keep it within --memory" in moved.json()["error"]["message"]
    assert answer(server) == before
