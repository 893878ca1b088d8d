"""`.ci/alone`: two `make chat` at once in a fresh clone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ALONE = [sys.executable, str(Path(__file__).parents[2] / ".ci" / "alone")]
WAITS = "waiting for another make that is installing here\n"


def start(command: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([*ALONE, command], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize("killed", [False, True])
def test_the_second_waits(tmp_path: Path, killed: bool) -> None:
    with start("echo ready; read line; touch done", tmp_path) as first:
        assert first.stdout is not None and first.stdin is not None
        assert first.stdout.readline() == "ready\n"
        with start("test -e done || echo missing", tmp_path) as second:
            assert second.stderr is not None
            assert second.stderr.readline() == WAITS
            if killed:
                os.killpg(first.pid, signal.SIGKILL)
            else:
                first.stdin.write("\n")
                first.stdin.flush()
            assert second.communicate(timeout=60) == ("missing\n" if killed else "", "")


def test_a_failing_command_fails(tmp_path: Path) -> None:
    assert subprocess.run([*ALONE, "exit 3; true"], cwd=tmp_path, check=False).returncode == 3
    assert subprocess.run([*ALONE, "false; true"], cwd=tmp_path, check=False).returncode == 1
