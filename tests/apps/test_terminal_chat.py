"""The terminal chat, on a real terminal (a pseudo-terminal) and with standard input from elsewhere."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edgert
from edgert.apps.chat_statistics import statistics_lines

CHAT = [sys.executable, "-m", "edgert", "chat"]


def hear_interrupts() -> None:
    """What starts tests in the background ignores Ctrl-C, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A chat on a pseudo-terminal."""

    def __init__(self, bundle: Path, *options: str, **environment: str) -> None:
        master, slave = pty.openpty()
        self.process = subprocess.Popen([*CHAT, str(bundle), "--seed", "1", *options], stdin=slave, stdout=slave,
                                        stderr=slave, start_new_session=True, preexec_fn=hear_interrupts,
                                        env={**os.environ, "TERM": "dumb", **environment})
        os.close(slave)
        self._master = master

    def until(self, pattern: str, seconds: float = 30) -> str:
        """What is shown until a pattern is."""
        shown, end = "", time.monotonic() + seconds
        while not re.search(pattern, shown):
            assert time.monotonic() < end, f"{pattern!r} did not come: {shown!r}"
            if select.select([self._master], [], [], 0.2)[0]:
                shown += os.read(self._master, 4096).decode(errors="replace").replace("\r\n", "\n")
        return shown

    def type(self, line: str | bytes) -> None:
        os.write(self._master, (line if isinstance(line, bytes) else line.encode()) + b"\n")

    def saved(self, file: Path) -> list[dict[str, str]]:
        """The conversation, as /save writes it."""
        self.type(f"/save {file}")
        self.until(r"saved to .*\n[\s\S]*>>> ")
        messages: list[dict[str, str]] = json.loads(file.read_text())["messages"]
        return messages

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def open_terminal(smollm2: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(*options: str, **environment: str) -> Terminal:
        opened.append(Terminal(smollm2, "--temperature", "0", *options, **environment))
        opened[-1].until(">>> ")
        return opened[-1]

    yield open_one
    for chat in opened:
        chat.close()


@pytest.fixture
def terminal(open_terminal: Callable[..., Terminal]) -> Terminal:
    return open_terminal("-n", "400")


def test_a_conversation(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("/system Answer in one word.")
    assert "Answer in one word." in terminal.until("\n>>> ")
    terminal.type("Say yes.")
    terminal.until("Say yes.\n")
    terminal.until(r"\w[\s\S]*\n>>> ")
    terminal.type("/stats")
    shown = terminal.until("\n>>> ")
    assert "tokens/s" in shown
    assert "MiB" in shown
    file = tmp_path / "chat.json"
    terminal.type(f"/save {file}")
    terminal.until("saved.*\n>>> ")
    messages = json.loads(file.read_text())["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    terminal.type("/reset")
    terminal.until("new conversation\\)\n>>> ")
    terminal.type("/save /no/such/folder/chat.json")
    assert "cannot be saved" in terminal.until("cannot be saved.*\n>>> ")
    terminal.type("/exit")
    assert terminal.process.wait(timeout=20) == 0


def test_ctrl_c_stops_the_answer_not_the_program(terminal: Terminal) -> None:
    terminal.type("Write a very long story about a river.")
    terminal.until(r"river\.\n[\s\S]{40,}")
    os.killpg(terminal.process.pid, signal.SIGINT)
    terminal.until(r"\(stopped\)\n>>> ")
    time.sleep(0.5)  # the prompt is shown a moment before it listens
    os.killpg(terminal.process.pid, signal.SIGINT)
    terminal.until(r"Ctrl-D.*\n>>> ")
    terminal.type("Say yes.")
    terminal.until(r"\w[\s\S]*\n>>> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=20) == 0


def test_standard_input_is_answered(smollm2: Path) -> None:
    done = subprocess.run([*CHAT, str(smollm2), "-n", "8"], input="Name a colour.", capture_output=True, text=True,
                          timeout=60, check=True)
    assert done.stdout.strip()
    done = subprocess.run([*CHAT, str(smollm2)], input=" \n", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "standard input is empty" in done.stderr


def test_what_a_command_lacks_is_said(terminal: Terminal, tmp_path: Path) -> None:
    """And no command ends the chat, whatever its argument."""
    for typed, words in (
            ("/sav x", r"no command /sav \(did you mean /save\?\)"), ("/xyzzy", "no command /xyzzy; /help lists them"),
            ("/save", "/save needs the name of a file"), ("/save .", "is a folder"), ("/save /", "is a folder"),
            ("/save ~nobody-of-that-name/x", "cannot be saved"), ("/save no\x16\a/x", r"no\\x07/x: the chat"),
            ("/context many", "give a number of tokens from 1 to 8192"), ("/context 8193", "from 1 to 8192"),
            ("/context", "has room for 4096 tokens; this model takes up to 8192"), ("/drop", "nothing to leave out"),
            ("/help", "/context N")):
        terminal.type(typed)
        terminal.until(words + r"[\s\S]*\n>>> ")
    assert terminal.saved(tmp_path / "chat.json") == []


def test_lines_between_triple_quotes_are_one_question(open_terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    chat = open_terminal("-n", "4")
    for line in ('"""/etc/hosts', "", "  is what?"):
        chat.type(line)
        chat.until(r"\.\.\. ")
    chat.type('"""')
    chat.until(r'"""\n[\s\S]*\n>>> ')
    chat.type('"""/etc/passwd"""')
    chat.until(r'"""\n[\s\S]*\n>>> ')
    questions = [m["content"] for m in chat.saved(tmp_path / "chat.json") if m["role"] == "user"]
    assert questions == ["/etc/hosts\n\n  is what?", "/etc/passwd"]


def test_a_full_context_is_no_dead_end(open_terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    """The question that does not fit waits until turns are left out, or the context is made larger."""
    chat = open_terminal("-n", "24", "-c", "120")
    shown, asked = "", 0
    while "The question waits" not in shown:
        chat.type("What is a river? Answer at length.")
        shown = chat.until(r"length\.\n[\s\S]*\n>>> ")
        asked += 1
        assert asked < 6
    assert asked > 2
    assert re.search(r"has 1\d\d tokens with this question, the context room for 120", shown)
    chat.type("/drop")
    shown = chat.until(r"/drop\n[\s\S]*\n>>> ")
    assert re.search(r"\(\d of \d messages are left out; /save still writes them\)\n.*\w", shown)
    while "The question waits" not in shown:
        chat.type("What is a river? Answer at length.")
        shown = chat.until(r"length\.\n[\s\S]*\n>>> ")
        asked += 1
    context = re.search(r"/context (\d+) ", shown)[1]  # type: ignore[index]
    chat.type(f"/context {context}")
    shown = chat.until(r"/context \d+\n[\s\S]*\n>>> ")
    assert re.search(rf"room for {context} tokens; this model takes up to 8192\)\n.*\w", shown)
    roles = [message["role"] for message in chat.saved(tmp_path / "chat.json")]
    assert roles == ["user", "assistant"] * asked


def test_a_filling_context_is_told_before(open_terminal: Callable[..., Terminal]) -> None:
    chat = open_terminal("-n", "50", "-c", "100")
    chat.type("Tell me about rivers.")
    shown = chat.until(r"rivers\.\n[\s\S]*\n>>> ")
    assert re.search(r"\(context: \d+ of 100 tokens used; before it is full: /drop leaves out", shown)
    chat = open_terminal("-c", "64")
    chat.type("Tell me a long story about rivers.")
    assert "the context is full, so the answer ends here: /drop" in chat.until(r"rivers\.\n[\s\S]*\n>>> ")


def test_a_context_that_memory_has_no_room_for(smollm2: Path, open_terminal: Callable[..., Terminal]) -> None:
    """The model is opened again as it was, and the conversation goes on."""
    tight = subprocess.run([*CHAT, str(smollm2), "-c", "256", "-m", "20M"], input="x", capture_output=True, text=True,
                           timeout=60, check=False)
    smallest = int(re.search(r"at least (\d+) MiB", tight.stderr)[1])  # type: ignore[index]
    chat = open_terminal("-n", "8", "-c", "256", "-m", f"{smallest + 10}M")
    chat.type("Say yes.")
    chat.until(r"yes\.\n[\s\S]*\n>>> ")
    chat.type("/context 8192")
    assert "at least" in chat.until(r"8192\n[\s\S]*\n>>> ")
    chat.type("/context")
    chat.until("room for 256 tokens")
    chat.type("Say no.")
    chat.until(r"no\.\n[\s\S]*\w[\s\S]*\n>>> ")


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "latin-1"}, {
    "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}], ids=["latin-1", "C"])
def test_a_terminal_that_is_not_utf_8(open_terminal: Callable[..., Terminal], environment: dict[str, str]) -> None:
    """Tokens drawn at random hold letters of many scripts."""
    chat = open_terminal("-n", "300", "--temperature", "99", "--top-k", "0", "--top-p", "1", "--min-p", "0",
                         **environment)
    chat.type(b"Tell me a story.")
    assert "\\u" in chat.until(r"story\.\n[\s\S]*\n>>> ", 60)
    chat.type("/system Sei kurz für Käse.".encode("latin-1" if "PYTHONIOENCODING" in environment else "utf-8"))
    chat.until(r"system: Sei kurz f.*r K.*se\.\n>>> ")
    chat.type("/exit")
    assert chat.process.wait(timeout=20) == 0


def test_typed_bytes_that_are_no_text(smollm2: Path) -> None:
    """Where no line editor sees to it: what the chat says goes into a pipe here."""
    master, slave = pty.openpty()
    os.write(master, b"caf\xe9\n/exit\n")
    done = subprocess.run([*CHAT, str(smollm2)], stdin=slave, capture_output=True, timeout=60, check=False)
    os.close(slave)
    os.close(master)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"that was not UTF-8 text; is the terminal set to another encoding" in done.stdout


def test_stats_tell_of_reads_that_were_done_again(model: edgert.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any("second time" in line for line in statistics_lines(model, None))
    monkeypatch.setattr(model._file, "read_again", 2)
    assert "disk: 2 reads failed or came damaged, and went well the second time" in list(statistics_lines(model, None))


def test_stats_tell_what_was_guessed(model: edgert.Model) -> None:
    last = model.generate("Once upon a time", max_tokens=4)
    last.text()
    statistics = last.statistics
    statistics.guessed = 0
    assert not any(line.startswith("guesses:") for line in statistics_lines(model, last))
    statistics.generated_tokens, statistics.passes = 31, 10
    statistics.guessed, statistics.right, statistics.wrong = 40, 20, 5
    statistics.draft_s, statistics.verify_s = 1.5, 2.5
    assert ("guesses: 20 of 40 were right, 80 % of those with only right ones before them; 3.0 tokens came of each "
            "pass over the weights; guessing took 1.5 s, checking 2.5 s") in list(statistics_lines(model, last))
