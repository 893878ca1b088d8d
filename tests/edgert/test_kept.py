"""`edgert list`, `show`, `rm` and `ps`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest

EDGERT = [sys.executable, "-P", "-m", "edgert"]


def edgert(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return forked.edgert(*arguments, EDGERT_MODELS=str(folder))


@pytest.fixture
def folder(tmp_path: Path, smollm2: Path) -> Path:
    """A models' folder with a model, one that is damaged, a fetched file, one for embeddings, and what is none."""
    (tmp_path / "converted").mkdir()
    for name in ("small.edge", "converted/other-1-2.edge"):
        shutil.copyfile(smollm2, tmp_path / name)
    (tmp_path / "damaged.edge").write_bytes(b"edge")
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(bytes(3_000_000))
    (tmp_path / "all-minilm-l6-v2" / "1_Pooling").mkdir(parents=True)
    (tmp_path / "all-minilm-l6-v2" / "1_Pooling" / "config.json").write_bytes(bytes(2_000_000))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".hidden.edge").write_text("")
    return tmp_path


def test_list(folder: Path, smollm2: Path) -> None:
    lines = edgert(folder, "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["damaged", "small", "converted/other-1-2.edge",
                                                  "SmolLM2-135M-Instruct.Q4_1.gguf", "all-minilm-l6-v2"]
    assert lines[0].endswith("convert it again") and lines[1].endswith("llama, 135 M weights, q4")
    assert "3 MB" in lines[3] and "2 MB" in lines[4]
    kept = json.loads(edgert(folder, "list", "--json").stdout)["kept"]
    assert [one["kind"] for one in kept] == ["model", "model", "converted", "fetched", "embeddings"]
    assert kept[1]["size"] == smollm2.stat().st_size


def test_show(folder: Path) -> None:
    shown = dict(line.split(maxsplit=1) for line in edgert(folder, "show", "small").stdout.splitlines())
    assert (shown["family"], shown["parameters"], shown["context"]) == ("llama", "134,515,008", "8,192")
    assert (shown["chat"], shown["tools"], shown["license"]) == ("yes", "no", "apache-2.0")
    assert json.loads(edgert(folder, "show", "small", "--json").stdout)["vocabulary"] == 49152
    assert edgert(folder, "show", "small", "--template").stdout.startswith("{%")
    for name in ("damaged", "nothing"):
        refused = edgert(folder, "show", name)
        assert refused.returncode == 1 and refused.stderr.startswith("edgert: ") and refused.stderr.count("\n") == 1


def test_remove(folder: Path) -> None:
    refused = edgert(folder, "rm", "notes.txt")
    assert refused.returncode == 1 and "notes.txt: is not in" in refused.stderr
    assert "; there is damaged, small" in refused.stderr
    done = edgert(folder, "rm", "small", "damaged", "converted/other-1-2.edge", "all-minilm-l6-v2",
                  "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 5
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"notes.txt", ".hidden.edge"}
    assert edgert(folder, "list").stdout.startswith(f"nothing in {folder}; ")


def test_processes(folder: Path) -> None:
    with subprocess.Popen([*EDGERT, "run", "small", "-n", "4"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          env={**os.environ, "EDGERT_MODELS": str(folder)}) as waits:  # for its prompt
        found = json.loads(subprocess.check_output([*EDGERT, "ps", "--json"]))["processes"]
        assert [(one["command"], one["resident_bytes"] > 0) for one in found if one["pid"] == waits.pid] == [
            ("edgert run small -n 4", True)]
        assert not any("edgert ps" in one["command"] for one in found)
        waits.communicate(b"Rivers", timeout=60)
    assert waits.pid not in [one["pid"] for one in json.loads(edgert(folder, "ps", "--json").stdout)["processes"]]
