"""Where a bundle may be written, and that nothing is lost of what is there: real files, links, devices, pipes."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_model import write_model

from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.errors import BundleError, EdgertError, SourceError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def contents(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Kind and bytes of all that is below a folder, links not followed."""
    return {str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
            for path in sorted(folder.rglob("*"))}


def refused(model: Path, out: Path, kind: type[EdgertError] = SourceError) -> str:
    """The sentence with which a conversion is refused that changes nothing."""
    before = contents(model.parent)
    with pytest.raises(kind) as error:
        convert(str(model), out)
    assert contents(model.parent) == before
    return str(error.value)


def whole(path: Path) -> bool:
    with Bundle(path) as bundle:
        return bundle.verify() == []


PART = "m.edge.part: is in the way, and is not what an interrupted conversion leaves; move it"


@pytest.mark.parametrize("link", [os.link, os.symlink, os.rename])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json"])
def test_a_file_of_the_model_in_the_place_of_the_unfinished_bundle(
        model: Path, tmp_path: Path, name: str, link: Callable[[Path, Path], None]) -> None:
    link(model / name, tmp_path / "m.edge.part")
    if link is os.rename:
        (model / name).symlink_to(tmp_path / "m.edge.part")
    assert PART in refused(model, tmp_path / "m.edge", BundleError)


@pytest.mark.parametrize("link", [os.link, os.symlink, None])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json"])
def test_a_file_of_the_model_as_bundle(model: Path, tmp_path: Path, name: str,
                                       link: Callable[[Path, Path], None] | None) -> None:
    out = tmp_path / "m.edge" if link else model / name
    if link:
        link(model / name, out)
    assert "is the model to convert, or a file of it; give the bundle another name" in refused(model, out)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, make_socket, lambda path: path.symlink_to("/dev/full")],
                         ids=["pipe", "socket", "link to a device"])
def test_what_is_no_file(model: Path, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "m.edge")
    assert "is a device, a pipe or a socket" in refused(model, tmp_path / "m.edge")
    (tmp_path / "m.edge").rename(tmp_path / "n.edge.part")
    assert "is in the way" in refused(model, tmp_path / "n.edge", BundleError)


def test_a_device(model: Path, tmp_path: Path) -> None:
    device = tmp_path / "full"
    try:
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 7))
    except PermissionError:
        device = Path("/dev/full")
    assert "is a device" in refused(model, device)
    assert stat.S_ISCHR(device.stat().st_mode)


def test_standard_output_is_no_file(model: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "edgert", "convert", model, "/dev/stdout"], capture_output=True,
                          text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("edgert: /dev/stdout: is a device, a pipe or a socket; name a file to write, such as "
                           "model.edge\n")


def test_a_link_is_written_through(model: Path, tmp_path: Path) -> None:
    """As cp does, but whole or not at all: the unfinished bundle is beside what the link points to."""
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "real.edge").write_bytes(b"before")
    (tmp_path / "between").symlink_to("large/real.edge")
    (tmp_path / "m.edge").symlink_to(tmp_path / "between")
    seen: list[bool] = []
    convert(str(model), tmp_path / "m.edge",
            progress=lambda *_: seen.append((tmp_path / "large" / "real.edge.part").exists()))
    assert all(seen) and seen
    assert (tmp_path / "m.edge").is_symlink() and (tmp_path / "between").is_symlink()
    assert whole(tmp_path / "large" / "real.edge")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["between", "large", "m.edge", "model"]


@pytest.mark.parametrize("target", ["nowhere.edge", "no/where", "m.edge"])
def test_a_link_to_nothing(model: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "m.edge").symlink_to(target)
    assert f"is a link to {target}, which is not there" in refused(model, tmp_path / "m.edge")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_replaced_file_keeps_its_mode(model: Path, tmp_path: Path, mode: int) -> None:
    (out := tmp_path / "m.edge").write_bytes(b"before")
    out.chmod(mode)
    modes: set[int] = set()
    convert(str(model), out, progress=lambda *_: modes.add((tmp_path / "m.edge.part").stat().st_mode & 0o777))
    assert modes == {mode} and out.stat().st_mode & 0o777 == mode and whole(out)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_replaced_file_keeps_its_owner(model: Path, tmp_path: Path) -> None:
    (out := tmp_path / "m.edge").write_bytes(b"before")
    os.chown(out, 65534, 65533)
    convert(str(model), out)
    assert (out.stat().st_uid, out.stat().st_gid) == (65534, 65533)


def test_a_new_file_has_the_mode_that_the_user_wants(model: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        (tmp_path / "m.edge.part").touch(mode=0o600)  # what was left of another conversion has no say in it
        convert(str(model), tmp_path / "m.edge")
    finally:
        os.umask(before)
    assert (tmp_path / "m.edge").stat().st_mode & 0o777 == 0o640
