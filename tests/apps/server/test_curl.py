"""What curl sees: the bytes of a stream."""

import json
import subprocess

import pytest
from served import Server

pytestmark = pytest.mark.xdist_group("server")


def curl(*arguments: str) -> str:
    return subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, check=True, timeout=60).stdout


def test_an_answer(server: Server) -> None:
    answer = json.loads(curl(f"{server.url}/v1/chat/completions", "-d", json.dumps(
        {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4})))
    assert answer["object"] == "chat.completion" and answer["choices"][0]["message"]["content"]


def test_a_stream(server: Server) -> None:
    shown = curl("-N", "-i", f"{server.url}/v1/chat/completions", "-d", json.dumps(
        {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4, "stream": True}))
    head, _, body = shown.replace("\r\n", "\n").partition("\n\n")
    assert "200 OK" in head and "content-type: text/event-stream" in head and "cache-control: no-cache" in head
    assert "usage" not in body, "only where it is asked for"
    *events, done, rest = body.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    events = [event for event in events if not event.startswith(":")]
    assert {json.loads(event.removeprefix("data: "))["object"] for event in events} == {"chat.completion.chunk"}


def test_refused_before_a_stream_opens(server: Server) -> None:
    shown = curl("-i", f"{server.url}/v1/chat/completions", "-d", '{"messages": "Hello", "stream": true}')
    assert "400 Bad Request" in shown and "content-type: application/json" in shown
