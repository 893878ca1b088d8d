"""The cache of compiled kernels; nothing is really compiled here."""

import importlib.metadata
import shutil
import sys
import warnings
from pathlib import Path

import pytest

from edgert.kernels import native

TARGET = "any"


class Compiler:
    """Stands for the compiler and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, target: str, _progress: native.Progress) -> bytes:
        self.calls += 1
        return b"object for " + target.encode()


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    compiler = Compiler()
    monkeypatch.setattr(native, "_compile", compiler)
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path))
    return compiler


def test_compiled_once(compiler: Compiler, tmp_path: Path) -> None:
    first, second = native.object_file(TARGET), native.object_file(TARGET)
    assert first == second == b"object for any" and compiler.calls == 1
    assert native.object_file("other") == b"object for other" and compiler.calls == 2
    assert {path.suffix for path in (tmp_path / "kernels").iterdir()} == {".o"}, "no partial file is left"


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer", "folder"])
def test_a_damaged_file_is_compiled_again(compiler: Compiler, damage: str) -> None:
    native.object_file(TARGET)
    path = native.cached_object(TARGET)
    data = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"flip": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "empty": b"",
                          "longer": data + b"\0"}[damage])
    with warnings.catch_warnings(record=True) as warned:
        assert native.object_file(TARGET) == native.object_file(TARGET) == b"object for any"
    assert compiler.calls == (3 if damage == "folder" else 2), "the damaged file was replaced"
    assert {each.category for each in warned} == ({native.CacheWarning} if damage == "folder" else set())


def test_a_cache_that_cannot_be_written(compiler: Compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not by anyone, root included: its folder would be under a file."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path / "file"))
    for calls in (1, 2):
        with pytest.warns(native.CacheWarning, match=r"file/kernels/any-\w+\.o: .* \(not a directory\), so every start "
                                                     "compiles them again, .*; set EDGERT_CACHE"):
            assert native.object_file(TARGET) == b"object for any"
        assert compiler.calls == calls


def test_nothing_half_written_stays(compiler: Compiler) -> None:
    native.cached_object(TARGET).mkdir(parents=True)
    with pytest.warns(native.CacheWarning, match="is a directory"):
        native.object_file(TARGET)
    assert list(native.cache_folder().iterdir()) == [native.cached_object(TARGET)]


def test_the_key_depends_on_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "kernels"
    shutil.copytree(Path(native.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    key = native._key.__wrapped__
    before = key(TARGET)
    monkeypatch.setattr(native, "__file__", str(copy / "native.py"))
    assert key(TARGET) == before, "the same sources elsewhere"
    with (copy / "simd" / "dot.py").open("a") as file:
        file.write("# changed\n")
    assert key(TARGET) != before


@pytest.mark.parametrize("package", ["numba", "llvmlite"])
def test_the_key_depends_on_the_compilers_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                  package: str) -> None:
    assert importlib.metadata.version(package).encode() in native._release(package)
    file = tmp_path / package / "_version.py"
    file.parent.mkdir()
    (file.parent / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    keys = set()
    for version in ("1.0", "1.1"):
        file.write_text(f"version = '{version}'\n")
        keys.add(native._key.__wrapped__(TARGET))
    assert len(keys) == 2


def test_the_key_depends_on_the_target_and_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    key = native._key.__wrapped__
    keys = {key(TARGET), key("other")}
    monkeypatch.setattr(native, "_processor", lambda: "another processor")
    keys.add(key(TARGET))
    monkeypatch.setenv("NUMBA_CPU_NAME", "another name")
    keys.add(key(TARGET))
    assert len(keys) == 4


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """A shell script in place of the Python that compiles; $4 is where the object goes."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for Python")
def test_progress_and_object_come_from_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, 'echo "1 2 matrix q4"; echo "a warning"; echo "2 2 norm"; echo $EDGERT_SIMD >"$4"')
    steps: list[tuple[int, int, str]] = []
    assert native._compile("avx2", lambda *step: steps.append(step)) == b"avx2\n"
    assert steps == [(1, 2, "matrix q4"), (2, 2, "norm")]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for Python")
def test_a_compiler_that_complains_a_lot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """More than a pipe holds, before the first line of progress."""
    stand_in(monkeypatch, tmp_path, """
        (sleep 30; kill -9 $$) >/dev/null 2>&1 &
        head -c 1000000 /dev/zero | tr '\\0' x >&2
        echo "1 1 matrix q4"; echo object >"$4"; kill $!""")
    assert native._compile("avx2", lambda *_: None) == b"object\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for Python")
@pytest.mark.parametrize(("script", "message"), [
    ("echo first >&2; echo 'ValueError: the reason' >&2; exit 1", "avx2 failed: ValueError: the reason"),
    ("exit 0", "no message"),
    ("kill -9 $$", "no message"),
])
def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, message: str) -> None:
    stand_in(monkeypatch, tmp_path, script)
    with pytest.raises(native.CompilationError, match=message):
        native._compile("avx2", lambda *_: None)


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path))
    assert native.cache_folder() == tmp_path / "kernels"
    monkeypatch.delenv("EDGERT_CACHE")
    assert native.cache_folder().name == "kernels" and "edgert" in str(native.cache_folder())
