"""GGUF files where bundles are asked for: converted once, and anew when they change; others run through llama.cpp."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from fake_models import write_gguf
from forked import edgert
from tiny_gguf import write_foreign

from edgert.commands.gguf import Foreign, resolve
from edgert.commands.loading import load_model
from edgert.errors import ModelError, SourceError

WITH_LLAMA = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="edgert[llama] is not installed")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models' folder of its own."""
    monkeypatch.setenv("EDGERT_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    return write_foreign(tmp_path / "tiny.gguf")


def test_converted_once_and_anew_when_it_changes(models: Path, tmp_path: Path) -> None:
    file, ask = write_gguf(tmp_path / "own.gguf"), ("-p", "ab", "-n", 8, "--ignore-eos", "-t", 1)
    first = edgert("run", file, *ask)
    assert (first.returncode, first.stderr) == (0, "converting own.gguf, this once\n")
    (bundle,) = models.glob("converted/own-*.edge")
    again = edgert("run", file, *ask)
    assert (again.stdout, again.stderr) == (first.stdout, "")
    assert edgert("run", bundle, *ask).stdout == first.stdout
    write_gguf(file, seed=1)
    changed = edgert("run", file, *ask)
    assert changed.stderr == "converting own.gguf, this once\n" and changed.stdout != first.stdout
    (other,) = models.glob("converted/own-*.edge")
    assert other != bundle and "whole" in edgert("verify", file).stdout


def test_a_file_that_is_damaged(models: Path, tmp_path: Path) -> None:
    (cut := tmp_path / "cut.gguf").write_bytes(write_gguf(tmp_path / "own.gguf").read_bytes()[:-5000])
    done = edgert("run", cut, "-p", "x")
    assert done.returncode == 1 and done.stderr.startswith(f"edgert: {cut}: tensor ")
    assert done.stderr.endswith("it is cut off or damaged, fetch it again\n") and done.stderr.count("\n") == 1
    assert not list(models.glob("converted/[!.]*"))


def test_a_conversion_that_is_killed(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SourceError, match="the process that converts it ended with status 1"):
        resolve(write_gguf(tmp_path / "own.gguf"))


def test_what_needs_a_bundle(models: Path, foreign: Path) -> None:
    assert resolve(foreign) == Foreign(foreign, f"{foreign}: architecture 'orion' is not supported")
    for command in ("plan", "inspect"):
        done = edgert(command, foreign)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (f"edgert: {foreign}: architecture 'orion' is not supported; it runs through "
                               "llama.cpp only, with edgert chat, run, serve, web and app\n")


def test_settings_that_llama_cpp_does_not_have(foreign: Path) -> None:
    with pytest.raises(ModelError, match=r"but without --kv-policy and --speculation: leave that away$"):
        load_model(Foreign(foreign, "x"), speculation="4", kv_policy="window")


@WITH_LLAMA
def test_a_foreign_model_answers(models: Path, foreign: Path) -> None:
    says = (f"{foreign}: architecture 'orion' is not supported; so llama.cpp runs it, and edgert does not bound its "
            "memory\n")
    done = edgert("run", foreign, "-p", "ab", "-n", 8, "--ignore-eos", "-t", 1)
    assert (done.returncode, done.stderr) == (0, says) and len(done.stdout) > 1
    chat = edgert("chat", foreign, "-n", 8, "-t", 1, "--seed", 1, stdin="Say yes.")
    assert (chat.returncode, chat.stderr) == (0, says)


@WITH_LLAMA
def test_its_conversations_are_not_kept(models: Path, foreign: Path, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGERT_SESSIONS", str(tmp_path / "sessions"))
    done = edgert("chat", foreign, "-t", 1, "--session", "trip", stdin="Say yes.")
    assert done.returncode == 1 and done.stderr.endswith("cannot be kept; leave --session away\n")
    assert done.stdout == "" and not list((tmp_path / "sessions").glob("*.session"))


@pytest.mark.reference
@WITH_LLAMA
def test_a_real_model_through_llama_cpp(gemma_gguf: Path) -> None:
    """One that edgert knows too, and llama.cpp runs as it does others."""
    from edgert.fallback.model import LlamaModel

    with LlamaModel(gemma_gguf, threads=2) as model:
        answer = model.chat([{"role": "user", "content": "What is the capital of France?"}], max_tokens=40)
        assert answer.text().strip() == "The capital of France is Paris."
