"""The terminal chat in tmux: every key and every command, at 60 and 200 columns, with emoji and CJK input.

    python tests/large/terminal_session.py BUNDLE OTHER_BUNDLE FOLDER

writes what each step shows to FOLDER/session-60.txt and FOLDER/session-200.txt, for somebody to look at, and fails
where a screen does not come to show what it must. Takes a minute or two for each width with a small model.
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

PATIENCE_S = 60.0
PROMPT, SHELL = "\n>>>", "\n$"


class Step(NamedTuple):
    """keys: as `tmux send-keys` has them, "=" before a text that is typed as it is, "+" before one that is pasted.
    shows: what the screen must show then, in this order, after what was typed."""

    about: str
    keys: list[str]
    shows: list[str]


def steps(other: str, folder: Path) -> list[Step]:
    """The session. other: a bundle to load."""
    long = "Tell me about rivers, at length."
    return [
        Step("emoji and CJK, edited in their middle", [
            "=東京は？ 😀👍🏽 한국", "Left", "Left", "Left", "=とても", "Home", "=✨ "],
             ["✨ 東京は？ 😀👍🏽とても 한국"]),
        Step("sent", ["Enter"], ["한국", PROMPT]),
        Step("anew", ["=/reset", "Enter"], ["(a new conversation)", PROMPT]),
        Step("help", ["=/help", "Enter"], ["/system TEXT", "/budget SIZE", "Ctrl-G", PROMPT]),
        Step("Tab shows commands", ["=/s", "Tab"], ["/stats", "show speed and memory"]),
        Step("Tab goes on", ["=et te", "Tab", "= 0.5", "Enter"], ["temperature  0.5", PROMPT]),
        Step("settings", ["=/set", "Enter"], ["max_tokens", "temperature         0.5", "seed", PROMPT]),
        Step("a setting that there is not", ["=/set warmth 1", "Enter"], ["there is no setting warmth", PROMPT]),
        Step("greedy again", ["=/set temperature default", "Enter"], ["temperature  0", PROMPT]),
        Step("triple quotes", ['="""', "Enter", "=/etc/hosts?", "Enter", "Enter", '=In a word."""'],
             ['>>> """', "... /etc/hosts?", '... In a word."""']),
        Step("sent", ["Enter"], ['In a word."""', PROMPT]),
        Step("Alt-Enter", ["=one 川", "M-Enter", "=two 山"], [">>> one 川", "... two 山"]),
        Step("Ctrl-C leaves it", ["C-c"], ["(Ctrl-D or /exit ends)", PROMPT]),
        Step("pasted", ["+def f(x):\n\treturn 2 * x  # 二倍\n/exit"], [
            ">>> def f(x):", "...     return 2 * x", "... /exit"]),
        Step("sent", ["Enter"], ["/exit", PROMPT]),
        Step("the arrow up", ["Up", "Up", "Up", "Up", "Up"], ['>>> """', "... /etc/hosts?"]),
        Step("left", ["C-c"], ["(Ctrl-D or /exit ends)", PROMPT]),
        Step("searched", ["C-r", "=東京"], ["reverse-i-search", "✨ 東京は"]),
        Step("found", ["Enter", "C-c"], ["(Ctrl-D or /exit ends)", PROMPT]),
        Step("Ctrl-Z leaves the chat waiting", ["C-z"], ["Stopped", SHELL]),
        Step("and back", ["=fg", "Enter"], ["chat", PROMPT]),
        Step("an editor", ["=Name", "C-g"], [">>> Name rivers 🏞", "... and lakes"]),
        Step("sent", ["Enter"], ["and lakes", PROMPT]),
        Step("longer answers", ["=/set max_tokens 300", "Enter"], ["max_tokens  300", PROMPT]),
        Step("Ctrl-C stops an answer", ["=Write a long story about a river.", "Enter", "~0.7", "C-c"],
             ["(stopped)", PROMPT]),
        Step("shorter answers", ["=/set max_tokens 24", "Enter"], ["max_tokens  24", PROMPT]),
        Step("statistics", ["=/stats", "Enter"], ["last answer:", "threads:", PROMPT]),
        Step("another budget", ["=/budget 150M", "Enter"], ["memory: 150 MiB", "(memory: 150 MiB", PROMPT]),
        Step("the conversation goes on", ["=And in Italy? 🇮🇹", "Enter"], ["🇮🇹", PROMPT]),
        Step("too small", ["=/budget 20M", "Enter"], ["at least", "so all goes on as it was", PROMPT]),
        Step("no size", ["=/budget lots", "Enter"], ["is not a size", PROMPT]),
        Step("the context", ["=/context", "Enter"], ["has room for 512 tokens", PROMPT]),
        Step("anew", ["=/reset", "Enter"], ["(a new conversation)", PROMPT]),
        Step("a small context", ["=/context 160", "Enter"], ["has room for 160 tokens", PROMPT]),
        Step("a question", [f"={long}", "Enter"], ["length.", PROMPT]),
        Step("another", [f"={long}", "Enter"], ["length.", PROMPT]),
        Step("it becomes full", ["=Go on. 続けて。", "Enter"], ["tokens used; before it is full:", PROMPT]),
        Step("no room", [f"={long}", "Enter"], ["The question waits", "/drop", PROMPT]),
        Step("turns are dropped", ["=/drop", "Enter"], ["messages are left out", PROMPT]),
        Step("long answers", ["=/set max_tokens 120", "Enter"], ["max_tokens  120", PROMPT]),
        Step("less room than an answer may take", [f"={long}", "Enter"],
             ["(the answer has room for", "context", PROMPT]),
        Step("short answers", ["=/set max_tokens 24", "Enter"], ["max_tokens  24", PROMPT]),
        Step("saved", [f"=/save {folder}/chat.json", "Enter"], ["saved to", PROMPT]),
        Step("no such command", ["=/sav x", "Enter"], ["did you mean /save?", PROMPT]),
        Step("a system message", ["=/system 短く答えて。", "Enter"], ["system: 短く答えて。", PROMPT]),
        Step("anew", ["=/reset", "Enter"], ["(a new conversation)", PROMPT]),
        Step("no such model", ["=/load nothing", "Enter"], ["nothing: there is no such file", PROMPT]),
        Step("another model", [f"=/load {other}", "Enter"], ["a new conversation, with the same settings", PROMPT]),
        Step("which answers", ["=Say yes.", "Enter"], ["yes.", PROMPT]),
        Step("gone", ["C-d"], [SHELL]),
    ]


class Tmux:
    """A shell in tmux, with a server of its own."""

    def __init__(self, socket: Path, columns: int, environment: dict[str, str]) -> None:
        self._call = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        subprocess.run([*self._call, "new-session", "-d", "-s", "chat", "-x", str(columns), "-y", "50", "env", "PS1=$ ",
                        "sh"], check=True, env={**os.environ, **environment})

    def __call__(self, *arguments: str) -> str:
        return subprocess.run([*self._call, *arguments], check=True, capture_output=True, text=True).stdout

    def screen(self, joined: bool = False) -> str:
        """What is shown; joined: rows that go on in the next are one."""
        return self("capture-pane", "-p", *(["-J"] if joined else []), "-t", "chat").rstrip()

    def press(self, keys: str) -> None:
        if keys.startswith("="):
            self("send-keys", "-t", "chat", "-l", keys[1:])
        elif keys.startswith("+"):
            self("set-buffer", keys[1:])
            self("paste-buffer", "-p", "-t", "chat")
        elif keys.startswith("~"):
            time.sleep(float(keys[1:]))
        else:
            self("send-keys", "-t", "chat", keys)
        time.sleep(0.1)

    def until(self, shows: list[str]) -> str | None:
        """Wait until the screen shows these in this order; returns what does not come, None if all do."""
        end = time.monotonic() + PATIENCE_S
        while True:
            lacking, shown = None, self.screen(joined=True)
            for text in shows:
                _, found, shown = shown.partition(text)
                if not found or (text in (PROMPT, SHELL) and shown.strip()):
                    lacking = text
                    break
            if lacking is None or time.monotonic() > end:
                return lacking
            time.sleep(0.2)


def session(columns: int, bundle: str, other: str, folder: Path) -> list[str]:
    """Goes through all steps; returns what did not come."""
    failures = []
    with TemporaryDirectory() as scratch, (folder / f"session-{columns}.txt").open("w") as record:
        editor = Path(scratch) / "editor"
        editor.write_text("#!/bin/sh\nprintf ' rivers 🏞\\nand lakes\\n' >> \"$1\"\n")
        editor.chmod(0o755)
        tmux = Tmux(Path(scratch) / "socket", columns, {
            "XDG_DATA_HOME": scratch, "EDGERT_CONFIG": os.devnull, "VISUAL": str(editor)})
        try:
            tmux("pipe-pane", "-O", "-t", "chat", f"cat > {shlex.quote(str(folder / f'session-{columns}.raw'))}")
            command = shlex.join([sys.executable, "-m", "edgert", "chat", bundle, "-c", "512", "-n", "24", "--seed",
                                  "1", "--temperature", "0", "--session", "recorded"])
            again = Step("the session goes on", ["=" + command, "Enter"], ["going on with recorded", PROMPT])
            first = Step("begins", ["=" + command, "Enter"], ["Ask something", PROMPT])
            narrower = Step("a narrower window", ["=" + "長い質問です" * 12], ["長い質問です"])
            for step in [first, *steps(other, Path(scratch)), again, narrower]:
                for keys in step.keys:
                    tmux.press(keys)
                lacking = tmux.until(step.shows)
                if step is narrower:
                    tmux("resize-window", "-t", "chat", "-x", str(columns - 20), "-y", "40")
                    time.sleep(1)
                print(f"{columns:4} {'FAILED' if lacking else 'ok':7} {step.about}", flush=True)
                record.write(f"=== {step.about}: {' '.join(step.keys)}\n{tmux.screen()}\n\n")
                if lacking:
                    failures.append(f"{columns} columns, {step.about}: {lacking!r} did not come")
                if step.shows[-1] == PROMPT:
                    tmux("send-keys", "-t", "chat", "C-l")  # the next step begins on an empty screen
                    time.sleep(0.3)
        finally:
            tmux("kill-server")
    return failures


def main() -> None:
    bundle, other, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    failures = [failure for columns in (60, 200) for failure in session(columns, bundle, other, folder)]
    print("\n".join(failures) or "all came as they must")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
