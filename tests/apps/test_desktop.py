"""`edgert app`: its windows, whose place other programs take here, and its launcher."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
from fake_models import DEFAULT, Machine

from edgert.apps.desktop import window_memory_of_last_time
from edgert.apps.launcher import quoted
from edgert.apps.window import NO_WINDOW
from edgert.errors import EdgertError

WINDOW = """#!{python}
import subprocess, sys, time
from pathlib import Path
folder = Path({folder!r})
opened = next(a for a in sys.argv if a.startswith("--app=")).removeprefix("--app=file://")
(folder / "arguments").write_text(" ".join(sys.argv))
(folder / "mode").write_text(oct(Path(opened).stat().st_mode & 0o777))
(folder / "opened.part").write_text(Path(opened).read_text())
(folder / "opened.part").rename(folder / "opened")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
while not (folder / "close").exists():
    time.sleep(0.05)
child.kill()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no pywebview and, as its only program, a Chromium: one that tells what it was asked to show."""
    (tmp_path / "webview.py").write_text("raise ImportError('there is none')")
    program = tmp_path / "bin" / "chromium"
    program.parent.mkdir()
    program.write_text(WINDOW.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", f"{program.parent}:/nowhere")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def app(*arguments: str | Path, environment: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", "edgert", "app", *map(str, arguments)], stderr=subprocess.PIPE,
                            text=True, env=environment)


def opened(process: "subprocess.Popen[str]", folder: Path) -> tuple[str, str]:
    """The address that the window shows when the model is there, and the key in it."""
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    return shown(process, folder)


def shown(process: "subprocess.Popen[str]", folder: Path) -> tuple[str, str]:
    """The address that the window shows, and the key in it."""
    while not (folder / "opened").exists():
        assert process.poll() is None
    address, _, rest = (folder / "opened").read_text().partition("url=")[2].partition('"')[0].partition("/#key=")
    return address, rest


def status(address: str, key: str) -> dict[str, Any]:
    with urlopen(Request(f"{address}/edgert/status", headers={"Authorization": f"Bearer {key}"})) as response:
        said: dict[str, Any] = json.load(response)
        return said


def answered(address: str, key: str) -> int:
    try:
        with urlopen(Request(f"{address}/edgert/status", headers={"Authorization": f"Bearer {key}"})) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


def test_it_ends_when_its_window_is_closed(folder: Path, smollm2: Path) -> None:
    with app(smollm2, "-c", "512") as process:
        address, key = opened(process, folder)
        assert (answered(address, key), answered(address, "another")) == (200, 401)
        assert key not in (folder / "arguments").read_text(), "everybody sees a command line"
        assert (folder / "mode").read_text() == "0o600"
        (folder / "close").touch()
        assert process.wait(30) == 0
    assert not list((folder / "data").rglob("open.html"))


def test_a_window_is_closed_with_it(folder: Path, smollm2: Path) -> None:
    with app(smollm2, "-c", "512") as process:
        opened(process, folder)
        (window,) = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert not window.is_running()


def test_what_the_window_takes(folder: Path, smollm2: Path) -> None:
    """All its processes; what they share is not counted twice, where the kernel says so."""
    with app(smollm2, "-c", "512") as process:
        address, key = opened(process, folder)
        windows = psutil.Process(process.pid).children()[0].children() + psutil.Process(process.pid).children()
        assert len(windows) == 2
        most = sum(window.memory_info().rss for window in windows)
        said = status(address, key)
        assert 4 << 20 < said["window"] <= most and said["used"] > said["window"]
        assert window_memory_of_last_time() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert window_memory_of_last_time() == said["window"]


def test_the_first_start(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The window opens before there is a model; what fetches that ends when the window is closed."""
    machine = Machine(tmp_path_factory.mktemp("machine"))
    machine.hub.go_on.clear()
    environment = {**machine.environment, "PYTHONPATH": f"{folder}:{machine.environment['PYTHONPATH']}"}
    with machine.hub, app(environment=environment) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(f"fetching and converting {DEFAULT}, this once")
        address, key = shown(process, folder)
        while (choosing := status(address, key)["chooser"]["choosing"])["doing"] != "fetching":
            time.sleep(0.02)
        (maker,) = [child for child in psutil.Process(process.pid).children() if DEFAULT in child.cmdline()]
        assert choosing["name"] == DEFAULT
        (folder / "close").touch()
        assert process.wait(30) == 0
        assert not maker.is_running()
        machine.hub.go_on.set()
        assert process.stderr.read() == ""


def test_the_same_address_next_time(folder: Path, smollm2: Path) -> None:
    """What a browser keeps belongs to an address."""
    addresses = []
    for _ in range(2):
        with app(smollm2, "-c", "512") as process:
            addresses.append(opened(process, folder)[0])
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        (folder / "opened").unlink()
    assert addresses[0] == addresses[1]


def test_no_window_at_all(folder: Path, smollm2: Path) -> None:
    (folder / "bin" / "chromium").unlink()
    with app(smollm2, "-c", "512", "--window", "chromium") as process:
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait(30) == 0
    assert "no window can be opened here" in errors and "Traceback" not in errors


def test_a_machine_without_pywebview(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "edgert.apps.window", str(folder)], input="http://127.0.0.1:1/\n",
                          text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (NO_WINDOW, "")


def test_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validate = shutil.which("desktop-file-validate")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-m", "edgert", "app", 'a "model" at 100%.edge', "-m", "600M", "--install"],
                          cwd=tmp_path, text=True, capture_output=True, check=True)
    icon, entry = map(Path, done.stdout.split("\n")[:2])
    assert icon.read_text().startswith("<svg ")
    line = next(line for line in entry.read_text().splitlines() if line.startswith("Exec="))
    assert line.endswith(f' "app" "{tmp_path}/a \\\\"model\\\\" at 100%%.edge" "--memory" "600M"')
    if validate:
        subprocess.run([validate, str(entry)], check=True)


@pytest.mark.parametrize(("argument", "written"), [
    ("plain", '"plain"'), ("two words", '"two words"'), ("$HOME", '"\\\\$HOME"'), ("a\\b", '"a\\\\\\\\b"'),
    ("50%", '"50%%"'), ("`x`", '"\\\\`x\\\\`"')])
def test_quoting_as_the_specification_has_it(argument: str, written: str) -> None:
    """Its examples: a dollar sign is \\\\$ in the file, a backslash is four."""
    assert quoted(argument) == written


def test_what_cannot_stand_in_a_launcher() -> None:
    with pytest.raises(EdgertError, match="control characters"):
        quoted("two\nlines")
