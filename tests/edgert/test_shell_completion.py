"""What shells are told to complete a command line to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from edgert.cli import cli


def completed(*words: str) -> list[str]:
    """The last word's completions: a kind and a text."""
    found = BashComplete(cli, {}, "edgert", "_EDGERT_COMPLETE").get_completions(list(words[1:-1]), words[-1])
    return [f"{item.type},{item.value}" for item in found]


def test_models_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGERT_MODELS", str(tmp_path))
    for name in ("little.edge", "large.edge", ".hidden.edge", "model.gguf"):
        (tmp_path / name).touch()
    for command in ("chat", "run", "serve", "doctor"):
        assert completed("edgert", command, "li") == ["plain,little"]
    assert completed("edgert", "chat", "./m") == ["file,./m"]
    monkeypatch.chdir(tmp_path)
    assert completed("edgert", "chat", "la") == ["plain,large", "plain,large.edge"]
    monkeypatch.setenv("EDGERT_MODELS", str(tmp_path / "none"))
    monkeypatch.chdir("/")
    assert completed("edgert", "chat", "") == ["file,"]


def test_commands_and_options_complete() -> None:
    assert completed("edgert", "se") == ["plain,serve", "plain,sessions"]
    assert completed("edgert", "chat", "--kv-po") == ["plain,--kv-policy"]
    assert completed("edgert", "chat", "m.edge", "--kv-policy", "h") == ["plain,heavy"]


def test_commands_are_completed_without_importing_them() -> None:
    code = ("import sys, atexit\nfrom edgert.cli import main\n"
            "atexit.register(lambda: print([m for m in ('numpy', 'tokenizers') if m in sys.modules]))\nmain()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "_EDGERT_COMPLETE": "bash_complete", "COMP_WORDS": "edgert ",
                               "COMP_CWORD": "1"})
    assert done.stdout.splitlines()[-1] == "[]" and "plain,chat" in done.stdout
