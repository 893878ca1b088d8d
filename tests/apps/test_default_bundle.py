"""`edgert chat` without a bundle: SmolLM2 is fetched and converted by one process, and others wait for it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from fake_models import Machine

from edgert.apps.bundles import bundle_path, make_bundle
from edgert.locking import making
from edgert.models import families

MAKES, WAITS = "fetching and converting smollm2-135m, this once\n", (
    "waiting for another process that fetches and converts smollm2-135m\n")


@pytest.fixture
def models(smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models' folder of its own, with what would be fetched already there."""
    (tmp_path / smollm2_gguf.name).symlink_to(smollm2_gguf)
    monkeypatch.setenv("EDGERT_MODELS", str(tmp_path))
    return tmp_path


def chat(**environment: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-m", "edgert", "chat", "-n", "2", "--temperature", "0"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, **environment})
    stdin: IO[str] = process.stdin  # type: ignore[assignment]
    stdin.write("Say yes.")
    stdin.close()
    process.stdin = None
    return process


def test_two_at_once(machine: Machine) -> None:
    """Where the model of that name is a tiny one."""
    ends = [(*process.communicate(timeout=120), process.returncode)
            for process in [chat(**machine.environment) for _ in range(2)]]
    assert {status for *_, status in ends} == {0}, ends
    assert len({output for output, *_ in ends}) == 1 and ends[0][0].strip()
    said = sorted(errors for _, errors, _ in ends)
    assert said in ([MAKES, WAITS], ["", MAKES]), "made once, however the two came"
    assert not list(machine.models.glob("*.part*"))


def test_the_bundle_of_the_other_is_taken(models: Path, smollm2: Path) -> None:
    bundle = models / "smollm2-135m.edge"
    with making(bundle, lambda: None):
        process = chat()
        assert process.stderr is not None
        assert process.stderr.readline() == WAITS
        shutil.copy(smollm2, bundle)
        copied = bundle.stat().st_mtime_ns
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "") and output.strip()
    assert bundle.stat().st_mtime_ns == copied


def test_one_of_another_family_is_its_gguf_file(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {name: family for name, family in families.FAMILIES.items() if name != "gemma3"}
    monkeypatch.setattr(families, "FAMILIES", others)  # an entry taken out, and put back, would be the last one
    file = models / "gemma-3-270m-q4_k_m.gguf"
    assert bundle_path("gemma-3-270m") == file and bundle_path("smollm2-135m") == models / "smollm2-135m.edge"
    file.touch()
    assert make_bundle("gemma-3-270m", lambda what, done, total: None) == file


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGERT_MODELS", str(tmp_path / "file" / "models"))
    process = chat()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == f"edgert: smollm2-135m: cannot be stored in {tmp_path}/file/models: Not a directory\n"
