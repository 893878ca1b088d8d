"""config.toml: defaults of one's own, and what is said where it is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from forked import edgert

from edgert.cli import COMMANDS, cli
from edgert.commands.defaults import defaults_file, read_defaults
from edgert.errors import EdgertError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGERT_CONFIG", str(tmp_path / "config.toml"))
    return tmp_path / "config.toml"


def defaults(name: str) -> dict[str, object]:
    command = cli.get_command(click.Context(cli), name)
    read = read_defaults()
    assert command is not None and read is not None
    return read.of(name, command, COMMANDS)


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGERT_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert defaults_file() == tmp_path / "edgert" / "config.toml"
    assert defaults_file().name == "config.toml" and (defaults_file().exists() or read_defaults() is None)


def test_common_and_own(config: Path) -> None:
    config.write_text("""
threads = 2
speculation = 4
temperature = 1
[chat]
bundle = "m.edge"
temperature = 0.25
history = false
kv-type = "q8"
[run]
stop = ["a", "b"]
[plan]
for = "serve"
""")
    assert defaults("chat") == {"threads": 2, "speculation": "4", "temperature": 0.25, "bundle": "m.edge",
                                "history": False, "kv_type": "q8"}
    assert defaults("run") == {"threads": 2, "speculation": "4", "temperature": 1, "stop": ["a", "b"]}
    assert defaults("plan") == {"threads": 2, "program": "serve"}
    assert defaults("pull") == {}


@pytest.mark.parametrize(("text", "command", "words"), [
    ("threads = ", "chat", "is not TOML: Invalid value (at end of document)"),
    ("a = 1\nb = = 2", "pull", "is not TOML: Invalid value (at line 2, column 5)"),
    ("\ntemprature = 1", "chat", ", line 2: temprature: is no setting that commands share (did you mean temperature?); "
                                 "those of one command go below its name, like [chat]"),
    ("history = false", "chat", ", line 1: history: is no setting that commands share"),
    ("[chta]", "run", ", line 1: chta: there is no command chta (did you mean chat?)"),
    ("[run]\nthreads = 1\n[chat]\nthread = 1", "chat",
     ", line 4: [chat] thread: edgert chat has no such option (did you mean threads?)"),
    ("[chat]\nno_history = true", "chat", "line 2: [chat] no_history: edgert chat has no such option"),
    ("[chat]\nthreads = \"two\"", "chat", ", line 2: [chat] threads: is 'two'; give a whole number"),
    ("[chat]\nthreads = true", "chat", ", line 2: [chat] threads: is True; give a whole number"),
    ("[chat]\nthreads = 1000", "chat", ", line 2: [chat] threads: 1000 is not in the range 1<=x<=256"),
    ("[chat]\ntemperature = \"x\"", "chat", "[chat] temperature: is 'x'; give a number"),
    ("[chat]\nhistory = 1", "chat", "[chat] history: is 1; give true or false"),
    ("[chat]\nmemory = 1.5", "chat", "[chat] memory: is 1.5; give a text, in quotes"),
    ("kv_type = \"q9\"", "chat", ", line 1: kv_type: 'q9' is not one of "),
    ("[run]\nstop = \"a\"", "run", "[run] stop: is 'a'; give a list, each a text, in quotes"),
    ("[chat.more]\nx = 1", "chat", "[chat] more: edgert chat has no such option")])
def test_what_is_wrong_is_named(config: Path, text: str, command: str, words: str) -> None:
    config.write_text(text)
    with pytest.raises(EdgertError) as caught:
        defaults(command)
    assert str(caught.value).startswith(str(config)) and words in str(caught.value)


def test_the_command_line_comes_first(config: Path, smollm2: Path) -> None:
    config.write_text(f"threads = 1\n[run]\nbundle = {json.dumps(str(smollm2))}\nmax-tokens = 2\njson = true\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return edgert("run", "-p", "Once", *arguments)

    answer = json.loads(run().stdout)
    assert (answer["threads"], len(answer["token_ids"])) == (1, 2)
    answer = json.loads(run("--threads", "2", "-n", "3").stdout)
    assert (answer["threads"], len(answer["token_ids"])) == (2, 3)
    config.write_bytes(b"\xff")
    refused = run()
    assert (refused.returncode, refused.stderr) == (1, f"edgert: {config}: is not UTF-8 text\n")
    config.unlink()
    config.mkdir()
    assert "is a directory" in run().stderr
