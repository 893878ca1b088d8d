"""/set, /load and /budget, and what is said of the context before it is full; where keys do not matter."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from screen import Screen
from tiny_model import give_tokenizer, write_model

import edgert
from edgert.apps.chat_settings import Settings
from edgert.apps.context_notice import ContextNotice
from edgert.apps.conversation import Conversation
from edgert.apps.terminal_chat import Chat

Open = Callable[..., Screen]


@pytest.fixture
def open_chat(smollm2: Path, tmp_path: Path) -> Iterator[Open]:
    with ExitStack() as stack:
        def open_one(*options: str, **environment: str) -> Screen:
            command = [sys.executable, "-m", "edgert", "chat", str(smollm2), "--temperature", "0", *options]
            environment |= {"EDGERT_SESSIONS": str(tmp_path / "sessions"), "XDG_DATA_HOME": str(tmp_path)}
            chat = stack.enter_context(Screen(command, 120, 60, **environment))
            chat.prompt(1)
            return chat

        yield open_one


def said(chat: Screen, line: str) -> str:
    """What the chat says to a line."""
    prompts = sum(row.startswith(">>>") for row in chat.rows())
    chat.enter(line)
    return chat.prompt(prompts + 1).rpartition(f">>> {line}")[2].rpartition(">>>")[0].strip()


def test_settings(open_chat: Open) -> None:
    chat = open_chat("-n", "6")
    lines = said(chat, "/set").splitlines()
    assert [line.split()[0] for line in lines] == [
        "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "seed", "max_loss"]
    assert lines[1].split() == ["temperature", "0"] and lines[-2].endswith("not set")
    assert said(chat, "/set temperature 0.5") == "temperature  0.5"
    assert said(chat, "/set top-k 7") == "top_k  7"
    assert said(chat, "/set repeat-penalty 1.1") == "repetition_penalty  1.1"
    assert said(chat, "/set seed").startswith("seed  not set  Seed of the random numbers")
    assert said(chat, "/set max_loss 3%").startswith("max_loss  0.03\nmax-loss changes little here")
    assert said(chat, "/set max-loss 0%") == "max_loss  0"
    assert said(chat, "/set max_tokens 2") == "max_tokens  2"
    assert len(said(chat, "Name three rivers.").split()) <= 2
    assert said(chat, "/set max_tokens default") == "max_tokens  6"
    for wrong, words in (("warmth 1", "there is no setting warmth; there are max_tokens, temperature, "),
                         ("temperature hot", "temperature: 'hot' is not a valid float; Higher is more random"),
                         ("max_loss 3", "max_loss: 3 is not between 0% and 100%; give one like 3%"),
                         ("temperature -1", "temperature"), ("top_p 1.5", "top_p"), ("temperature nan", "temperature"),
                         ("top_k -1", "top_k: -1 is not in the range x>=0"), ("n 0", "there is no setting n")):
        assert words in said(chat, f"/set {wrong}")
    assert "0.5" in said(chat, "/set temperature")


def test_a_budget_changes_nothing_but_the_speed(open_chat: Open, tmp_path: Path) -> None:
    answers = []
    for budgets in ((), ("/budget 150M",)):
        chat = open_chat("-n", "12", "-c", "512")
        said(chat, "Name a large city in France.")
        for budget in budgets:
            assert "the smallest budget is " in said(chat, budget)
        answers.append(said(chat, "And one in Italy?"))
        if budgets:
            stats = said(chat, "/stats")
            assert "flash: " in stats and "prompt tokens were new" in stats
            new, prompt = stats.partition("(")[2].split(" prompt tokens")[0].split(" of ")
            assert int(new) < int(prompt) - 20, "what was computed before is not computed again"
            refusal = said(chat, "/budget 20M")
            assert "at least" in refusal and refusal.endswith("so all goes on as it was")
            assert said(chat, "/budget lots") == "'lots' is not a size; write it like 600M or 1.5G"
            assert said(chat, "/budget").startswith("(memory: 150 MiB; ")
            assert said(chat, "And one in Spain?")
    assert answers[0] == answers[1]
    assert not list((tmp_path / "sessions").iterdir())


@pytest.fixture(scope="session")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model than SmolLM2, without a chat template."""
    folder = tmp_path_factory.mktemp("little")
    write_model(folder / "model", vocab_size=258)
    give_tokenizer(folder / "model")
    edgert.convert(str(folder / "model"), folder / "little.edge", "q4")
    return folder / "little.edge"


def test_loading_another_model(open_chat: Open, smollm2: Path, little: Path, tmp_path: Path) -> None:
    chat = open_chat("-n", "6", "--session", "trip", EDGERT_MODELS=str(little.parent))
    said(chat, "Name a large city in France.")
    kept = tmp_path / "sessions" / "trip.session"
    (damaged := tmp_path / "damaged.edge").write_bytes(b"no bundle")
    assert "is not an edgert bundle" in (refusal := said(chat, f"/load {damaged}"))
    assert refusal.endswith("so all goes on as it was")
    assert said(chat, "And one in Italy?")
    before = kept.read_bytes()
    assert said(chat, "/load lttle") == "lttle: there is no such file, nor a bundle of that name"
    for wrong in ("~nobody-of-that-name/x", "x" * 300):
        assert "there is no such file, nor a bundle of that name" in said(chat, f"/load {wrong}")
    assert said(chat, "/load smollm2-135m").endswith("it is in the catalogue: edgert pull smollm2-135m")
    assert said(chat, "/load") == "/load needs a bundle, by its path or its name in the models' folder; there: little"
    assert said(chat, "/load little").replace("\n", "") == (
        "(little: a new conversation, with the same settings; the session trip stays as it is, and what follows is not "
        "kept)")
    assert said(chat, "/set max_tokens").startswith("max_tokens  6")
    said(chat, "Hello")
    assert "a new conversation" in said(chat, f"/load {smollm2}")
    assert said(chat, "Hello")
    chat.enter(f"/save {tmp_path}/chat.json")
    chat.prompt(2)
    assert len(json.loads((tmp_path / "chat.json").read_text())["messages"]) == 2
    assert kept.read_bytes() == before


def test_when_nothing_can_be_opened_any_more(model: edgert.Model) -> None:
    """The conversation is still there, and a later command opens a model."""
    opened: list[object] = []

    class Closed:
        context = model.context

        def save_session(self, path: Path) -> None:
            raise edgert.ModelError("there is no room")

        def wait_for_session(self) -> None:
            pass

        def close(self) -> None:
            opened.append("closed")

    def open_model(changes: object) -> edgert.Model:
        opened.append(changes)
        if len(opened) == 1:
            return Closed()  # type: ignore[return-value]
        if len(opened) < 5:
            raise edgert.ModelError("no memory")
        return model

    chat = Chat(open_model, Conversation(), Settings({}))
    chat.conversation.ask("Hello?")
    with pytest.raises(edgert.EdgertError, match="no memory; and it cannot be opened as it was either: no memory; the "
                                                 "conversation is still here"):
        chat.commands.call("/budget 1G", {})
    assert opened == [{}, "closed", {"memory": "1G"}, {"context": model.context}]
    with pytest.raises(edgert.EdgertError, match="no model is open; /budget SIZE or /load MODEL opens one"):
        chat.commands.call("/stats", {})
    chat.settings.values["max_tokens"] = 1
    chat.commands.call("/budget 2G", {})
    assert opened[-1] == {"memory": "2G"} and len(chat.conversation.turns) == 2, "what waited is answered"


def test_the_end_of_the_context_is_told_before(open_chat: Open) -> None:
    chat = open_chat("-c", "100")
    shown = said(chat, "Tell me a long story about rivers, with a king, a queen, seven bridges and a cat.")
    assert shown.startswith("(the answer has room for ")
    assert "then the context of 100 is full and it ends" in shown and "the context is full, so the answer ends" in shown


class Room:
    """All that a notice asks of a model."""

    def __init__(self, kv_policy: str, context: int = 1000) -> None:
        self.kv_policy, self.context, self.endless = kv_policy, context, kv_policy in ("window", "heavy", "mixed")


@pytest.mark.parametrize(("policy", "words"), [
    ("stop", "before it is full: /drop leaves out"), ("flash", "before it is full: /drop leaves out"),
    ("window", "when it is full, the model forgets the oldest tokens but the first"),
    ("heavy", "when it is full, the model forgets what its attention returns to least"),
    ("mixed", "when it is full, what is older than the latest tokens is kept at 3 bits an element")])
def test_each_policy_says_what_it_will_do(policy: str, words: str) -> None:
    room: edgert.Model = Room(policy)  # type: ignore[assignment]
    notice = ContextNotice()
    assert notice.after_answer(room, 750) is None
    assert words in (notice.after_answer(room, 751) or "")
    assert notice.after_answer(room, 760) is None, "once is enough"
    notice.begin()
    assert words in (notice.after_answer(room, 760) or "")
    over = notice.after_answer(room, 1001) or ""
    assert ("from here on" if room.endless else "the context is full, so the answer ends here: /drop") in over
    few, most = notice.before_answer(room, 800, None), notice.before_answer(room, 800, 200)
    assert most is None and (few is None) == room.endless
    assert notice.before_answer(room, 744, None) is None
