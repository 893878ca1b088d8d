"""`edgert doctor --fix`: what is missing is said, and done with consent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from screen import Screen

from edgert.commands import mending
from edgert.commands.mending import Problem, mend, model_problems
from edgert.kernels.native import cache_folder
from edgert.residency.device import stored_devices

DOCTOR = [sys.executable, "-m", "edgert", "doctor"]


@pytest.fixture
def machine(smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that has compiled kernels, and what would be fetched, but no bundle and no measured disk. Returns the models'
    folder."""
    (cache := tmp_path / "cache").mkdir()
    (cache / "kernels").symlink_to(cache_folder())
    (models := tmp_path / "models").mkdir()
    (models / smollm2_gguf.name).symlink_to(smollm2_gguf)
    monkeypatch.setenv("EDGERT_CACHE", str(cache))
    monkeypatch.setenv("EDGERT_MODELS", str(models))
    return models


def doctor(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DOCTOR, *options], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def test_what_is_missing_is_said_and_with_consent_done(machine: Path) -> None:
    bundle = machine / "smollm2-135m.edge"
    said = doctor("--fix")
    assert said.returncode == 0
    assert f"there is no model in {machine} yet" in said.stdout and "    edgert pull smollm2-135m\n" in said.stdout
    assert f"{bundle}\n    not done; call that yourself, or give --yes\n" in said.stdout
    assert "the disk was never measured" in said.stdout and not bundle.exists()
    done = doctor("--fix", "--yes")
    assert done.returncode == 0 and bundle.is_file(), done
    assert "    edgert doctor smollm2-135m\n" in done.stdout and done.stdout.count("    done\n") == 2
    assert len(stored_devices()) == 1, "the disk was measured"
    assert model_problems(measured=True) == []


def test_it_asks_at_a_terminal(machine: Path) -> None:
    with Screen([*DOCTOR, "--fix"], 200) as screen:
        screen.until("do that? [y/N]: ")
        assert "edgert pull smollm2-135m" in screen.text()
        screen.press("\r")
        screen.until("the disk was never measured")
        assert not (machine / "smollm2-135m.edge").exists()


def test_what_fails_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    problem = Problem("missing: a thing", [["edgert", "pull", "no-such-model"]], needed=True)
    assert not mend([problem], yes=True)
    shown = capfd.readouterr()
    assert "edgert pull no-such-model ended with status 1; what it says above is what to do" in shown.out
    assert "no-such-model: is not in the catalogue" in shown.err
    assert not mend([Problem("missing: another", needed=True)], yes=True)
    assert mend([Problem("slow", [])], yes=True)


def test_what_few_people_want_is_not_done_without_asking(capfd: pytest.CaptureFixture[str]) -> None:
    problem = mending.optional_problem("matplotlib")
    assert "only edgert plan --png needs it" in problem.text
    mend([problem], yes=True)
    assert "pip install 'edgert[plot]'\n    not done; call that yourself if you want it" in capfd.readouterr().out


def test_a_wrong_defaults_file_is_told(tmp_path: Path) -> None:
    (config := tmp_path / "config.toml").write_text("[serve]\nprot = 1\n")
    done = subprocess.run(DOCTOR, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "EDGERT_CONFIG": str(config)})
    assert f"defaults{' ' * 22}{config}\n" in done.stdout
    assert f"{config}, line 2: [serve] prot: edgert serve has no such option (did you mean port?)\n" in done.stdout
    wrong = doctor("--yes")
    assert wrong.returncode == 2 and "--yes goes with --fix" in wrong.stderr
