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
from screen import ALT_ENTER, CTRL_A, CTRL_C, CTRL_D, CTRL_G, CTRL_R, LEFT, UP, Screen

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


def test_without_history_nothing_is_kept(open_chat: Open, tmp_path: Path) -> None:
    chat = open_chat("--no-history")
    chat.enter("/set seed 17")
    chat.prompt(2)
    chat.press(UP)
    chat.until(lambda: chat.text().count("/set seed 17") == 2)
    assert not history(tmp_path).exists()


def test_a_history_that_cannot_be_kept_is_told(open_chat: Open, tmp_path: Path) -> None:
    history(tmp_path).mkdir(parents=True)
    chat = open_chat()
    assert "what you type is not kept for later chats: " in chat.text().replace("\n", "")
    chat.enter("/set seed 17")
    chat.until("seed  17\n")


PASTED = "def twice(x):\n\treturn 2 * x"


@pytest.mark.parametrize("line_end", ["\n", "\r"])  # what terminals send differs
def test_pasted_lines_are_one_question(open_chat: Open, tmp_path: Path, line_end: str) -> None:
    chat = open_chat()
    chat.press(f"\x1b[200~{PASTED}\n/exit\n\x1b[201~".replace("\n", line_end))
    chat.until("... /exit")
    chat.enter()
    chat.prompt(2)
    assert questions(chat, tmp_path / "chat.json") == [f"{PASTED}\n/exit"]


def test_several_lines(open_chat: Open, tmp_path: Path) -> None:
    chat = open_chat()
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


def test_tab_completes(open_chat: Open, tmp_path: Path, smollm2: Path) -> None:
    (models := tmp_path / "models").mkdir()
    (models / "little.edge").symlink_to(smollm2)
    chat = open_chat(EDGERT_MODELS=str(models))
    chat.press("/st\t")
    chat.until(">>> /stats")
    chat.press("\x15/s\t")
    shown = chat.until("save the conversation as JSON")
    assert all(name in shown for name in ("/system", "/set", "/save", "/stats"))
    chat.press("et te\t")
    chat.until(">>> /set temperature")
    chat.press("\x15/load li\t")
    chat.until(">>> /load little")
    chat.press(f"\x15/save {tmp_path}/mod\t")
    chat.until(lambda: f"/save {tmp_path}/models" in chat.text().replace("\n", ""))
    chat.press("\x15Words\t")
    chat.until(lambda: chat.rows()[-1] == "" and ">>> Words" in chat.text())


def test_an_editor_of_ones_own(open_chat: Open, tmp_path: Path) -> None:
    editor = tmp_path / "my editor"
    editor.write_text("#!/bin/sh\ncat \"$2\" > \"$1\"\nprintf ' rivers\\nand lakes\\n' >> \"$2\"\n")
    editor.chmod(0o755)
    chat = open_chat(EDITOR=f"'{editor}' {tmp_path}/seen")
    chat.press("Name" + CTRL_G)
    chat.until(">>> Name rivers\n... and lakes")
    assert (tmp_path / "seen").read_text() == "Name"
    chat.enter()
    chat.prompt(2)
    assert questions(chat, tmp_path / "chat.json") == ["Name rivers\nand lakes"]


def test_an_editor_that_is_not_there(open_chat: Open) -> None:
    chat = open_chat(VISUAL="nothing-of-that-name -w")
    chat.press("Name" + CTRL_G)
    shown = chat.until("set it to an editor")
    assert "VISUAL is nothing-of-that-name -w, and there is no such program" in shown
    chat.until(lambda: chat.rows()[chat.text().count("\n")] == ">>> Name")


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


def test_bytes_that_are_no_text(open_chat: Open, tmp_path: Path) -> None:
    chat = open_chat()
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
