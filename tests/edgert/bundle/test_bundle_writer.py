"""Writing a bundle is all or nothing: whatever interrupts it leaves no bundle and nothing else, and what was there."""

import dis
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tiny_model import write_bundle, write_model

from edgert.bundle import Bundle, BundleWriter
from edgert.converters.convert import convert
from edgert.errors import BundleError, EdgertError, SourceError

BEFORE = b"what was there before"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("source") / "tiny"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "m.edge"
    path.write_bytes(BEFORE)
    return path


def failing(function: Callable[..., Any], at: int, code: int) -> Callable[..., Any]:
    """The function, whose call number `at` the operating system refuses."""
    calls = iter(range(1 << 30))

    def call(*arguments: Any) -> Any:
        if next(calls) == at:
            raise OSError(code, os.strerror(code))
        return function(*arguments)
    return call


def refused(model: str, out: Path, kind: type[EdgertError] = BundleError) -> str:
    with pytest.raises(kind) as error:
        convert(model, out)
    assert out.read_bytes() == BEFORE and list(out.parent.iterdir()) == [out]
    assert str(error.value).isprintable()
    return str(error.value).removeprefix(f"{out}: ")


def test_a_full_disk_at_every_write(model: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes, write = [], os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *arguments: writes.append(1) or write(*arguments))
        convert(model, out)
    out.write_bytes(BEFORE)
    assert len(writes) > 10
    for at in range(len(writes)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", failing(write, at, errno.ENOSPC))
            assert refused(model, out) == "cannot be written: the disk is full; choose another place or free some space"


@pytest.mark.parametrize(("name", "at", "code", "message"), [
    ("posix_fallocate", 0, errno.ENOSPC, "cannot be made room for: the disk is full"),
    ("posix_fallocate", 0, errno.EFBIG, "cannot be made room for: file too large"),
    ("fsync", 0, errno.EIO, "cannot be written: input/output error"),
    ("fsync", 1, errno.EIO, "cannot be written: input/output error"),
])
def test_refusals(model: str, out: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: int, code: int,
                  message: str) -> None:
    monkeypatch.setattr(os, name, failing(getattr(os, name), at, code))
    assert refused(model, out).startswith(message)


def test_renaming_refused(model: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", failing(Path.replace, 0, errno.EPERM))
    assert refused(model, out).startswith("cannot be written: operation not permitted")


@pytest.mark.parametrize("name", ["posix_fallocate", "fsync"])
def test_file_systems_that_can_less(model: str, out: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No reserving; no syncing of folders (the third call)."""
    monkeypatch.setattr(os, name, failing(getattr(os, name), 0 if name == "posix_fallocate" else 2, errno.EOPNOTSUPP))
    convert(model, out)
    with Bundle(out) as bundle:
        assert bundle.verify() == []


def test_short_writes(model: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:1000], at))
    convert(model, out)
    with Bundle(out) as bundle:
        assert bundle.verify() == []


def test_interrupted_by_the_user_at_every_part(model: str, out: Path) -> None:
    parts: list[str] = []
    convert(model, out, progress=lambda what, done, total: parts.append(what))
    out.write_bytes(BEFORE)
    for stop in parts:
        def progress(what: str, done: int, total: int, stop: str = stop) -> None:
            if what == stop:
                raise KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt):
            convert(model, out, progress=progress)
        assert out.read_bytes() == BEFORE and list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("leftover", [False, True])
def test_interrupted_at_every_step_of_making_the_file(model: str, out: Path, leftover: bool) -> None:
    """Before every instruction from the first to the end of __enter__: what there is then is the leftover, or nothing.

    A return has no place for an interruption.
    """
    steps = {f.__code__: {i.offset for i in dis.get_instructions(f) if not i.opname.startswith("RETURN")}
             for f in (BundleWriter.__enter__, BundleWriter._create, BundleWriter._claim,
                       BundleWriter._remove_leftover)}
    part = out.with_name("m.edge.part")
    stop = left = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code not in steps:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in steps[frame.f_code]:
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    interrupted = True
    while interrupted:
        left = stop = stop + 1
        if leftover:
            part.write_bytes(bytes(1000))
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            convert(model, out)
            interrupted = False
        except KeyboardInterrupt:
            assert out.read_bytes() == BEFORE
        finally:
            sys.settrace(before)
        assert not part.exists() or (leftover and interrupted and part.read_bytes() == bytes(1000))
    assert stop > 50
    with Bundle(out) as bundle:
        assert bundle.verify() == []


def test_source_damaged_halfway(tmp_path: Path, out: Path) -> None:
    """Weights that are not finite are found in the last tensor, when most is written."""
    folder = write_model(tmp_path.with_suffix(".model"))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\xc0\x7f")
    assert "infinite or not a number" in refused(str(folder), out, SourceError)


@pytest.mark.parametrize("preset", ["f16", "q4"])
def test_weights_too_large_for_the_format(tmp_path: Path, out: Path, preset: str) -> None:
    folder = write_model(tmp_path.with_suffix(".large"), size=1e36)
    with pytest.raises(SourceError, match=f"more than preset {preset} can hold"):
        convert(str(folder), out, preset)
    assert out.read_bytes() == BEFORE


def test_two_at_once(model: str, out: Path) -> None:
    """The second is refused, the first goes on."""
    with Bundle(write_bundle(out.with_name("other.edge"))) as bundle:
        header = bundle.header
    started: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        if not started:
            with pytest.raises(BundleError, match="another conversion is writing it"), BundleWriter(out, header):
                pass
        started.append(what)

    convert(model, out, progress=progress)
    with Bundle(out) as bundle:
        assert bundle.verify() == []
    assert not out.with_name("m.edge.part").exists()


def test_a_leftover_is_written_over(model: str, out: Path) -> None:
    out.with_name("m.edge.part").write_bytes(bytes(1 << 20))
    convert(model, out)
    with Bundle(out) as bundle:
        assert bundle.verify() == []
    assert list(out.parent.iterdir()) == [out]


def test_no_link_is_followed(model: str, out: Path) -> None:
    victim = out.with_name("victim")
    victim.write_bytes(BEFORE)
    out.with_name("m.edge.part").symlink_to(victim)
    with pytest.raises(BundleError, match="is in the way"):
        convert(model, out)
    assert victim.read_bytes() == out.read_bytes() == BEFORE


def test_places_that_cannot_be(model: str, tmp_path: Path) -> None:
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "no" / "m.edge", "is not a folder; make it first"),
                          (tmp_path / ("x" * 300), "file name too long")):
        with pytest.raises(EdgertError, match=message):
            convert(model, path)
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(SourceError, match="is the model to convert"):
        convert(str(gguf), gguf)
    assert gguf.read_bytes() == b"GGUF"


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[None]:
    """Root may write everywhere: as somebody else, who may pass through the folders above."""
    if os.geteuid():
        yield
        return
    above = [path for path in tmp_path.parents if path.stat().st_uid == 0 and not path.stat().st_mode & 1]
    for path in above:
        path.chmod(path.stat().st_mode | 0o011)
    os.seteuid(65534)
    yield
    os.seteuid(0)
    for path in above:
        path.chmod(path.stat().st_mode & ~0o011)


def test_no_permission(tmp_path: Path, as_nobody: None) -> None:
    if os.geteuid() == 65534:
        os.seteuid(0)
    folder = write_model(tmp_path / "tiny")
    for path in (tmp_path, folder, *folder.iterdir()):
        path.chmod(0o555)
    if os.getuid() == 0:
        os.seteuid(65534)
    with pytest.raises(BundleError, match="cannot be created: permission denied; choose another place"):
        convert(str(folder), tmp_path / "m.edge")


def test_a_small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one of 1 MB, whether it can reserve room or only run out of it."""
    folder, disk = write_model(tmp_path / "wide", intermediate_size=4000), tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True,
                             check=False) if os.geteuid() == 0 and sys.platform == "linux" else None
    if mounted is None or mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        for action in ("made room for", "written"):
            with pytest.raises(BundleError, match=f"cannot be {action}: the disk is full"):
                convert(str(folder), disk / "m.edge", "f32")
            assert list(disk.iterdir()) == []
            monkeypatch.setattr(os, "posix_fallocate", failing(os.posix_fallocate, 0, errno.EOPNOTSUPP))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


KILLED = """
import os, sys
from edgert.converters.convert import convert
source, out, reference = sys.argv[1:]
convert(source, reference)  # everything is imported and compiled now
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        while True:
            convert(source, out)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("over", flush=True)
"""


def test_killed_at_any_moment(model: str, tmp_path: Path) -> None:
    """What has the bundle's name is a whole bundle, always; what has the other name is none until it is whole."""
    out, reference = tmp_path / "m.edge", tmp_path / "reference.edge"
    rng = random.Random(5)
    with subprocess.Popen([sys.executable, "-c", KILLED, model, str(out), str(reference)], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for turn in range(40):
            if turn % 4 == 0:
                out.unlink(missing_ok=True)
            process.stdin.write("\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            deadline = time.monotonic() + 20
            while turn % 4 == 1 and not out.exists() and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.04))
            os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "over\n"
            for path in tmp_path.iterdir():
                try:
                    with Bundle(path) as bundle:
                        assert bundle.verify() == []
                except BundleError:
                    assert path.suffix == ".part"
            assert turn % 4 != 1 or out.exists()
        process.stdin.close()
    convert(model, out)
    assert out.read_bytes() == reference.read_bytes() and not out.with_name("m.edge.part").exists()
