"""The line editor of the terminal chat, on a terminal as its user sees it."""

import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from screen import ALT_ENTER, CTRL_A, CTRL_C, CTRL_D, CTRL_G, CTRL_L, CTRL_R, LEFT, UP, Screen

from edgert import EdgertError
from edgert.apps.line_history import open_history
from edgert.apps.text_editor import edit_text

Open = Callable[..., Screen]


@pytest.fixture
def open_chat(smollm2: Path, tmp_path: Path) -> Iterator[Open]:
    """Opens a chat whose history is in a folder of its own."""
    with ExitStack() as stack:
        def open_one(*options: str, columns: int = 80, **environment: str) -> Screen:
            command = [sys.executable, "-m", "edgert", "chat", str(smollm2), "--temperature", "0", "-n", "4", *options]
            chat = stack.enter_context(Screen(command, columns, XDG_DATA_HOME=str(tmp_path), **environment))
            chat.prompt(1)
            return chat

        yield open_one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the chat that tests share has its history, an editor and models."""
    return tmp_path_factory.mktemp("chat")


@pytest.fixture(scope="module")
def shared(smollm2: Path, folder: Path) -> Iterator[Screen]:
    editor = folder / "my editor"
    editor.write_text("#!/bin/sh\ncat \"$2\" > \"$1\"\nprintf ' rivers\\nand lakes\\n' >> \"$2\"\n")
    editor.chmod(0o755)
    (folder / "models").mkdir()
    (folder / "models" / "little.edge").symlink_to(smollm2)
    command = [sys.executable, "-m", "edgert", "chat", str(smollm2), "--temperature", "0", "-n", "4"]
    with Screen(command, 80, XDG_DATA_HOME=str(folder), EDITOR=f"'{editor}' {folder}/seen",
                EDGERT_MODELS=str(folder / "models")) as chat:
        chat.prompt(1)
        yield chat


@pytest.fixture
def chat(shared: Screen) -> Screen:
    """The chat that tests share, with a new conversation and an empty screen."""
    shared.press(CTRL_C)
    shared.until(lambda: shared.text().endswith("(Ctrl-D or /exit ends)\n>>>"))
    shared.enter("/reset")
    shared.until(lambda: shared.text().endswith("(a new conversation)\n>>>"))
    shared.press(CTRL_L)
    shared.until(lambda: shared.text() == ">>>")
    return shared


def questions(chat: Screen, file: Path) -> list[str]:
    """What was asked so far, as /save writes it."""
    chat.enter(f"/save {file}")
    chat.until(lambda: file.exists() and "saved to" in chat.text())
    return [m["content"] for m in json.loads(file.read_text())["messages"] if m["role"] == "user"]


def history(folder: Path) -> Path:
    return folder / "edgert" / "chat-history"


def test_what_was_typed_comes_back_in_a_later_chat(open_chat: Open, tmp_path: Path) -> None:
    chat = open_chat()
    chat.enter("/set seed 17")
    chat.prompt(2)
    chat.enter("/stats")
    chat.prompt(3)
    chat.press(CTRL_D)
    assert chat.ended() == 0
    assert stat.S_IMODE(history(tmp_path).stat().st_mode) == 0o600
    later = open_chat()
    later.press(UP + UP)
    later.until(">>> /set seed 17")
    later.press(CTRL_A + CTRL_C)
    later.prompt(2)
    later.press(CTRL_R + "see")
    later.until("/set seed 17")
    later.press("\r\r")
    later.until("seed  17\n")
    assert history(tmp_path).read_text().count("+/set seed 17") == 2


def test_a_history_that_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    open_history(False).append_string("/set seed 17")
    assert not list(tmp_path.iterdir())
    history(tmp_path).mkdir(parents=True)
    opened = open_history(True)
    opened.append_string("/set seed 17")
    assert opened.get_strings() == ["/set seed 17"]
    said = capsys.readouterr().err
    assert said.startswith("what you type is not kept for later chats: ") and "is a directory" in said


def test_a_long_history_keeps_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    opened = open_history(True)
    for number in range(1200):
        opened.store_string(f"{number}\n{'長' * 300}")
    texts = list(open_history(True).load_history_strings())
    assert len(texts) == 1000 and texts[0].startswith("1199\n") and texts[-1].startswith("200\n")
    assert stat.S_IMODE(history(tmp_path).stat().st_mode) == 0o600
    assert [path.name for path in history(tmp_path).parent.iterdir()] == ["chat-history"]


PASTED = "def twice(x):\n\treturn 2 * x"


@pytest.mark.parametrize("line_end", ["\n", "\r"])  # what terminals send differs
def test_pasted_lines_are_one_question(chat: Screen, tmp_path: Path, line_end: str) -> None:
    chat.press(f"\x1b[200~{PASTED}\n/exit\n\x1b[201~".replace("\n", line_end))
    chat.until("... /exit")
    chat.enter()
    chat.prompt(2)
    assert questions(chat, tmp_path / "chat.json") == [f"{PASTED}\n/exit"]


def test_several_lines(chat: Screen, tmp_path: Path) -> None:
    chat.press('"""/etc/hosts\r\r  is what?')
    shown = chat.until("...   is what?")
    assert '>>> """/etc/hosts\n...\n...   is what?' in shown
    chat.press('\r"""\r')
    chat.prompt(2)
    chat.press(f"one{ALT_ENTER}two")
    chat.until(">>> one\n... two")
    chat.enter()
    chat.prompt(3)
    chat.enter('"""/etc/passwd"""')
    chat.prompt(4)
    assert questions(chat, tmp_path / "chat.json") == ["/etc/hosts\n\n  is what?", "one\ntwo", "/etc/passwd"]


@pytest.mark.parametrize("columns", [60, 200])
def test_wide_characters(open_chat: Open, tmp_path: Path, columns: int) -> None:
    """The cursor goes by what a terminal shows: two columns for most of these, none for a joined part."""
    chat = open_chat(columns=columns)
    asked = "東京はどこですか？ 😀👍🏽 naïve 한국어" + " 長い質問です" * 6
    chat.press(asked)
    chat.until(lambda: asked[-12:].replace(" ", "") in chat.text().replace(" ", "").replace("\n", ""))
    chat.press(3 * LEFT + "とても" + CTRL_A + "✨ ")
    chat.until(">>> ✨")
    chat.enter()
    chat.prompt(2)
    assert questions(chat, tmp_path / "chat.json") == [f"✨ {asked[:-3]}とても{asked[-3:]}"]


def test_tab_completes(chat: Screen, folder: Path) -> None:
    chat.press("/st\t")
    chat.until(">>> /stats")
    chat.press("\x15/s\t")
    shown = chat.until("save the conversation as JSON")
    assert all(name in shown for name in ("/system", "/set", "/save", "/stats"))
    chat.press("et te\t")
    chat.until(">>> /set temperature")
    chat.press("\x15/load li\t")
    chat.until(">>> /load little")
    chat.press(f"\x15/save {folder}/mod\t")
    chat.until(lambda: f"/save {folder}/models" in chat.text().replace("\n", ""))
    chat.press("\x15Words\t")
    chat.until(lambda: chat.rows()[-1] == "" and ">>> Words" in chat.text())


def test_an_editor_of_ones_own(chat: Screen, folder: Path, tmp_path: Path) -> None:
    chat.press("Name" + CTRL_G)
    chat.until(">>> Name rivers\n... and lakes")
    assert (folder / "seen").read_text() == "Name"
    chat.enter()
    chat.prompt(2)
    assert questions(chat, tmp_path / "chat.json") == ["Name rivers\nand lakes"]


def test_editors_that_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDITOR", raising=False)
    for visual, words in (
            ("nothing-of-that-name -w", "VISUAL is nothing-of-that-name -w, and there is no such program; set it"),
            ("'", "VISUAL is \"'\", which is no command: "),
            ("sh -c 'printf \"\\377\" > \"$0\"'", "sh left a text that is not UTF-8"),
            ("rm", "question.md: no such file or directory; the question is as before")):
        monkeypatch.setenv("VISUAL", visual)
        with pytest.raises(EdgertError, match=re.escape(words)):
            edit_text("Name 川")
    monkeypatch.setenv("VISUAL", "false")
    assert edit_text("Name 川") == "Name 川", "an editor that says it failed changes nothing"
    monkeypatch.delenv("VISUAL")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgertError, match="there is no editor; set EDITOR"):
        edit_text("Name")


def test_interrupts(open_chat: Open) -> None:
    chat = open_chat("-n", "400")
    chat.press("half a ques" + CTRL_C)
    chat.until("(Ctrl-D or /exit ends)")
    chat.prompt(2)
    chat.enter("Write a very long story about a river.")
    chat.until(lambda: re.search(r"river\.\n[\s\S]{40}", chat.text()) is not None)
    chat.press(CTRL_C)
    chat.until("(stopped)")
    chat.prompt(3)
    chat.press(CTRL_D)
    assert chat.ended() == 0


def test_bytes_that_are_no_text(chat: Screen, tmp_path: Path) -> None:
    os.write(chat._master, b"caf\xe9")
    chat.until(">>> caf")
    chat.enter()
    chat.until("that was not UTF-8 text")
    chat.prompt(2)
    assert questions(chat, tmp_path / "chat.json") == []


def test_the_budget_holds_whatever_is_typed(smollm2: Path, tmp_path: Path) -> None:
    """The plan counts the line editor: the process never takes more than the smallest budget that it names."""
    command = [sys.executable, "-m", "edgert", "chat", str(smollm2), "-c", "512", "-n", "8", "--temperature", "0"]
    with Screen([*command, "-m", "20M"], 200) as refused:
        assert refused.ended() == 1
        smallest = int(re.search(r"at least (\d+) MiB", refused.text())[1])  # type: ignore[index]
    with Screen([*command, "-m", f"{smallest + 2}M"], 200, XDG_DATA_HOME=str(tmp_path)) as chat:
        chat.prompt(1)
        for number in range(3):
            chat.press(f"/s\t\x15東京 {number}{ALT_ENTER}" + "長い質問です " * 40 + CTRL_R + "東" + "\x07")
            chat.until("東京")
            chat.press("\r")
            chat.until(lambda: chat.rows()[-1] != "" or chat.text().endswith(">>>"))
            chat.enter("/reset")
            chat.until("(a new conversation)")
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{chat.process.pid}/status").read_text())[1])
    assert peak / 1024 <= smallest + 2
