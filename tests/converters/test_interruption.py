"""A conversion that is ended from outside removes what it has half-written, and nothing else."""

import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest
from tiny_model import write_model

from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.converters.interruption import cleaned_up

BEFORE = b"what was there before"
STARTER = """
import os, signal, sys
from edgert.cli import main
from edgert.converters.convert import convert
source, out, reference, errors = sys.argv[1:]
sys.argv[1:] = ["convert", source, out, "--preset", "q4"]
convert(source, reference)  # everything is imported now
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs tests in the background ignores it
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(2, 1)
        main()
        sys.exit()
    print(child, flush=True)
    sys.stdin.readline()  # until then the process can be sent signals, also when it has ended
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(autouse=True, scope="module")
def _as_on_a_terminal() -> Iterator[None]:
    """What runs tests in the background, such as nohup, ignores a hangup, and its children inherit that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class Starter:
    """A process that has everything imported, and starts conversions as processes of their own."""

    def __init__(self, process: "subprocess.Popen[str]", out: Path, reference: Path, errors: Path) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._input: IO[str] = process.stdin
        self._output: IO[str] = process.stdout
        self.out, self.part, self.errors = out, out.with_name(out.name + ".part"), errors
        self.reference = reference
        assert self._output.readline() == "ready\n"

    def _ask(self) -> int:
        self._input.write("\n")
        self._input.flush()
        return int(self._output.readline())

    def start(self) -> int:
        """Start a conversion; its process id."""
        return self._ask()

    def wait(self) -> int:
        """Its exit status, negative where a signal ended the process."""
        return self._ask()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("source") / "model", hidden_size=256, intermediate_size=1024,
                       num_hidden_layers=2, vocab_size=500)


@pytest.fixture
def starter(source: Path, tmp_path: Path) -> Iterator[Starter]:
    (tmp_path / "out").mkdir()
    paths = [tmp_path / "out" / "m.edge", tmp_path / "reference.edge", tmp_path / "errors"]
    with subprocess.Popen([sys.executable, "-c", STARTER, *map(str, [source, *paths])], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Starter(process, *paths)
        assert process.stdin is not None
        process.stdin.close()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.0005)


@pytest.mark.parametrize("numbers", [
    (signal.SIGTERM,), (signal.SIGHUP,), (signal.SIGINT,), (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM)], ids=str)
def test_at_any_moment(starter: Starter, numbers: tuple[signal.Signals, ...]) -> None:
    """Once the bundle is being written: ended as shells expect it, without a word too many, and without a trace."""
    rng, ended = random.Random(sum(numbers)), 0
    started = time.monotonic()
    starter.start()
    wait_for(starter.part)
    before = time.monotonic() - started
    assert starter.wait() == 0
    writing = time.monotonic() - started - before
    for turn in range(5):
        starter.out.write_bytes(BEFORE)
        child = starter.start()
        wait_for(starter.part)
        if turn:  # the first time while it is being made
            time.sleep(1.1 * writing * rng.random() ** 2)
        for number in numbers:
            os.kill(child, number)
        status = starter.wait()
        assert list(starter.out.parent.iterdir()) == [starter.out]
        if starter.out.read_bytes() == BEFORE:
            assert "Traceback" not in starter.errors.read_text(errors="replace")
            assert status == 128 + numbers[0]
            ended += 1
        else:
            assert starter.out.read_bytes() == starter.reference.read_bytes()
    assert ended


def test_a_terminal_that_is_closed(source: Path, tmp_path: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        code = ("import time\n"
                "from edgert.converters import convert as module\n"
                "from edgert.cli import main\n"
                "class Slow(module._Conversion):\n"
                "    def run(self):\n"
                "        print('writing', flush=True)\n"
                "        for _ in range(600):\n"  # a signal that comes just before does not end a sleep
                "            time.sleep(0.1)\n"
                "module._Conversion = Slow\n"
                "main()\n")
        os.execv(sys.executable, [sys.executable, "-c", code, "convert", str(source), str(tmp_path / "m.edge")])
    shown = b""
    while b"writing" not in shown:
        shown += os.read(terminal, 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["m.edge.part"]
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP
    assert list(tmp_path.iterdir()) == []


def test_a_killed_one_leaves_what_the_next_removes(starter: Starter) -> None:
    child = starter.start()
    wait_for(starter.part)
    os.kill(child, signal.SIGKILL)
    assert starter.wait() == -signal.SIGKILL and starter.part.exists()
    starter.start()
    assert starter.wait() == 0
    assert list(starter.out.parent.iterdir()) == [starter.out]
    assert starter.out.read_bytes() == starter.reference.read_bytes()


def test_the_file_of_another_conversion_stays(starter: Starter, source: Path) -> None:
    """The second is refused, or ended while it starts: the first goes on all the same."""
    for delay in (0.0, 0.001, 0.003, None):
        started: list[int] = []

        def progress(what: str, done: int, total: int, delay: float | None = delay, ours: list[int] = started) -> None:
            if ours:
                return
            ours.append(child := starter.start())
            if delay is not None:
                time.sleep(delay)
                os.kill(child, signal.SIGTERM)
            status = starter.wait()
            assert status in (1, 128 + signal.SIGTERM, -signal.SIGTERM) if delay is not None else status == 1
            assert starter.part.exists()

        convert(str(source), starter.out, progress=progress)
        with Bundle(starter.out) as bundle:
            assert bundle.verify() == []
        assert list(starter.out.parent.iterdir()) == [starter.out]


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    """nohup edgert convert …"""
    code = ("import signal\nfrom edgert.converters.interruption import cleaned_up\n"
            "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
            "with cleaned_up():\n"
            "    signal.raise_signal(signal.SIGHUP)\n"
            "    print('still here')\n"
            "    signal.raise_signal(signal.SIGTERM)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, "still here\n", "")


def test_handlers_are_as_before() -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(SystemExit) as ended, cleaned_up():
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_a_signal_that_somebody_swallowed_ends_the_program_all_the_same() -> None:
    with pytest.raises(SystemExit), cleaned_up(), suppress(SystemExit):
        signal.raise_signal(signal.SIGHUP)
