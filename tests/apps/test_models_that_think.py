"""A model that thinks before it answers: on the terminal, over OpenAI's interface and over Ollama's."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import httpx
import ollama
import pytest
from openai import OpenAI
from screen import Screen
from served import Server
from thinking_model import ANSWER, THOUGHT, write_thinking_gguf

import edgert

pytestmark = pytest.mark.xdist_group("server")
QUESTION = [{"role": "user", "content": "2+2?"}]
TURNS = [*QUESTION, {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}, *QUESTION]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thinking")
    edgert.convert(str(write_thinking_gguf(folder / "model.gguf")), folder / "thinker.edge")
    return folder / "thinker.edge"


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(bundle, "--temperature", "0", errors=tmp_path_factory.mktemp("server") / "errors").until_ready()
    yield started
    started.end()


@pytest.mark.parametrize(("think", "shown"), [
    ((), ANSWER), (("--think", "fold"), ANSWER), (("--think", "hide"), ANSWER), (("--think", "off"), ANSWER),
    (("--think", "show"), f"Thinking...\n{THOUGHT}\n...done thinking.\n\n{ANSWER}")])
def test_run(bundle: Path, think: tuple[str, ...], shown: str) -> None:
    done = forked.edgert("run", bundle, "--chat", "-p", "2+2?", *think)
    assert done.stdout == f"{shown}\n"
    assert "thought" not in done.stderr  # it is no terminal


def test_run_for_programs(bundle: Path) -> None:
    done = forked.edgert("run", bundle, "--chat", "-p", "2+2?", "--json")
    said = json.loads(done.stdout)
    assert (said["text"], said["thinking"]) == (ANSWER, THOUGHT)


def test_a_terminal_chat(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgert", "chat", str(bundle), "--temperature", "0"]
    with Screen(command, 120, 60, XDG_DATA_HOME=str(tmp_path)) as chat:
        chat.prompt(1)
        said = []
        for number, line in enumerate(("2+2?", "/think", "/think show", "3+3?", "/think off", "4+4?", "/think loud",
                                       f"/save {tmp_path / 'chat.json'}"), 2):
            chat.enter(line)
            said.append(chat.prompt(number).rpartition(f">>> {line}")[2].rpartition(">>>")[0].strip())
    assert said[0].splitlines() == ["(thought: 4 tokens; /think writes them)", ANSWER]
    assert said[1].splitlines() == [THOUGHT, "(think: as the model does, folded)"]
    assert said[3].split() == f"Thinking... {THOUGHT} ...done thinking. {ANSWER}".split()
    assert said[5] == ANSWER
    assert said[6] == "/think takes show, fold, hide or off, not loud"
    messages = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [message.get("reasoning_content") for message in messages[1::2]] == [THOUGHT, THOUGHT, None]


def test_openai(server: Server) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    create: Any = client.chat.completions.create
    message = create(model="any", messages=QUESTION).choices[0].message
    assert (message.content, message.reasoning_content) == (ANSWER, THOUGHT)
    for off in ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, {"reasoning_effort": "none"}):
        message = create(model="any", messages=QUESTION, **off).choices[0].message
        assert message.content == ANSWER
        assert not hasattr(message, "reasoning_content")


def test_openai_in_a_stream(server: Server) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    create: Any = client.chat.completions.create
    deltas = [chunk.choices[0].delta for chunk in create(model="any", messages=QUESTION, stream=True)]
    thoughts = [at for at, delta in enumerate(deltas) if getattr(delta, "reasoning_content", None)]
    said = [at for at, delta in enumerate(deltas) if delta.content]
    assert "".join(deltas[at].reasoning_content for at in thoughts) == THOUGHT
    assert "".join(deltas[at].content for at in said) == ANSWER
    assert len(thoughts) > 2 and thoughts[-1] < said[0]


def test_thoughts_that_are_sent_back_are_the_templates_to_use(server: Server) -> None:
    """They take no tokens in the next turn, with this template."""
    def prompt_tokens(turns: list[dict[str, str]]) -> int:
        body = {"messages": turns, "max_tokens": 1}
        used: int = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
        return used

    assert prompt_tokens(TURNS) == prompt_tokens([{k: turn[k] for k in ("role", "content")} for turn in TURNS])
    assert prompt_tokens(TURNS[:2]) > prompt_tokens([{k: turn[k] for k in ("role", "content")} for turn in TURNS[:2]])


def test_values_that_a_template_cannot_have(server: Server) -> None:
    for kwargs in ({"messages": "no"}, {"enable_thinking": False, "x": [1, {"y": None}]}):
        said = httpx.post(f"{server.url}/v1/chat/completions", json={
            "messages": QUESTION, "chat_template_kwargs": kwargs}).json()
        assert said["choices"][0]["message"]["content"] == ANSWER
    refused = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": QUESTION, "chat_template_kwargs": "no"})
    assert refused.status_code == 400


def test_ollama(server: Server) -> None:
    client = ollama.Client(server.url)
    for think in (None, True, "high"):
        message = client.chat("thinker", QUESTION, think=think).message  # type: ignore[arg-type]
        assert (message.content, message.thinking) == (ANSWER, THOUGHT)
    message = client.chat("thinker", QUESTION, think=False).message
    assert (message.content, message.thinking) == (ANSWER, None)
    parts = list(client.chat("thinker", QUESTION, think=True, stream=True))
    assert "".join(part.message.thinking or "" for part in parts) == THOUGHT
    assert "".join(part.message.content or "" for part in parts) == ANSWER
    said = client.generate("thinker", "2+2?", think=True)
    assert (said.response, said.thinking) == (ANSWER, THOUGHT)
    assert client.generate("thinker", "2+2?", think=False).thinking is None
    assert client.show("thinker").capabilities == ["completion", "thinking"]
    turns = [*QUESTION, {"role": "assistant", "content": ANSWER, "thinking": THOUGHT}, *QUESTION]
    assert client.chat("thinker", turns).message.content == ANSWER
