"""A model that changes while it is converted gives no bundle; the hash in a bundle is of what was converted."""

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import write_model

from edgert.bundle import Bundle
from edgert.converters import source_file
from edgert.converters.convert import convert
from edgert.converters.source_file import SourceFile
from edgert.errors import SourceError

CHANGED = "has changed while it was being converted: wait until it is whole, then convert it again"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Larger than what is compared at once."""
    return write_model(tmp_path / "model", hidden_size=128, intermediate_size=1024, num_hidden_layers=2)


def keep_times(path: Path, change: Callable[[Path], object]) -> None:
    """Change a file so that neither its size nor its times tell."""
    status = path.stat()
    change(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def other_weights(path: Path) -> None:
    """Finite ones, in place, from the middle of the file on."""
    with path.open("r+b") as file:
        middle = path.stat().st_size // 8 * 4
        file.seek(middle)
        file.write(np.ones((path.stat().st_size - middle) // 4, "<f4").tobytes())


def copy_over(path: Path) -> None:
    """The same bytes under the same name, in another file."""
    shutil.copy2(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "written over": ("model.safetensors", other_weights),
    "written over within a tick of the clock": ("model.safetensors", lambda path: keep_times(path, other_weights)),
    "cut short": ("model.safetensors", lambda path: os.truncate(path, path.stat().st_size // 2)),
    "appended to": ("model.safetensors", lambda path: os.truncate(path, path.stat().st_size + 1)),
    "replaced": ("model.safetensors", copy_over),
    "its configuration": ("config.json", lambda path: path.write_bytes(path.read_bytes() + b" ")),
    "its settings": ("tokenizer_config.json", lambda path: path.write_text("{}")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_changes(folder: Path, tmp_path: Path, name: str) -> None:
    """Once the first tensor has been read."""
    file, change = CHANGES[name]
    (out := tmp_path / "m.edge").write_bytes(b"before")
    changed: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        if not changed:
            change(folder / file)
        changed.append(what)

    with pytest.raises(SourceError) as error:
        convert(str(folder), out, progress=progress)
    assert str(error.value) == f"{folder / file}: {CHANGED}"
    assert out.read_bytes() == b"before" and sorted(p.name for p in tmp_path.iterdir()) == ["m.edge", "model"]


def test_a_file_that_goes_away(folder: Path, tmp_path: Path) -> None:
    def progress(what: str, done: int, total: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    with pytest.raises(SourceError, match="cannot be read: No such file"):
        convert(str(folder), tmp_path / "m.edge", progress=progress)


def test_the_hash_is_of_what_was_converted(folder: Path, tmp_path: Path) -> None:
    convert(str(folder), tmp_path / "m.edge")
    with Bundle(tmp_path / "m.edge") as bundle:
        assert bundle.header.provenance["files"] == {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in ("config.json", "model.safetensors", "tokenizer.json")}


def test_hashing_says_how_far_it_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred gigabytes are read for minutes before the first tensor is."""
    monkeypatch.setattr(source_file, "_PIECE", 16)
    seen: list[tuple[str, int, int]] = []
    convert(str(folder), tmp_path / "m.edge", progress=lambda *report: seen.append(report))
    read = [(done, total) for what, done, total in seen if what == f"reading {folder.name}"]
    files = sum((folder / name).stat().st_size for name in ("config.json", "model.safetensors", "tokenizer.json"))
    assert {total for _, total in read} == {files} and len(read) > 10
    assert [done for done, _ in read] == sorted(done for done, _ in read) and read[-1][0] <= files


def test_a_terminal_that_is_gone_is_not_a_file_that_cannot_be_read(folder: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_file, "_PIECE", 1)

    def reading(done: int) -> None:
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        SourceFile(folder / "model.safetensors").sha256(reading)


PIECE = 64


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("content") / "file"
    path.write_bytes(random.Random(7).randbytes(10 * PIECE + 13))
    return path


@given(st.data())
def test_any_part_is_read_and_any_change_in_it_found(content: Path, data: st.DataObject) -> None:
    """And one that is not in the pieces that are read is not: the hash is not at stake."""
    whole = content.read_bytes()
    offset = data.draw(st.integers(0, len(whole)))
    size = data.draw(st.integers(0, len(whole) - offset))
    changed = data.draw(st.integers(0, len(whole) - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_file, "_PIECE", PIECE)
        file = SourceFile(content)
        assert file.read(offset, size).tobytes() == whole[offset:offset + size]
        assert file.sha256(lambda done: None) == hashlib.sha256(whole).hexdigest()
        assert file.read(offset, size).tobytes() == whole[offset:offset + size]
        other = bytearray(whole)
        other[changed] ^= 1
        try:
            keep_times(content, lambda path: path.write_bytes(other))
            if offset <= changed < offset + size:
                with pytest.raises(SourceError, match="has changed"):
                    file.read(offset, size)
            else:
                try:
                    assert file.read(offset, size).tobytes() == whole[offset:offset + size]
                except SourceError:
                    assert offset // PIECE <= changed // PIECE <= (offset + size) // PIECE
        finally:
            keep_times(content, lambda path: path.write_bytes(whole))
