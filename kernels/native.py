"""The kernels as machine code: compiled once for each processor and version, kept on disk, loaded without Numba.

Compiling happens in a process of its own (compiler.py) and takes a minute or two; after that, loading takes a few
milliseconds.
"""

import contextlib
import ctypes
import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import platformdirs
import xxhash

from .elf import Image, Unsupported
from .simd.target import VARIABLE, choose, machine

Progress = Callable[[int, int, str], None]
_KIND = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 4)
_ENTRY = "edgert_run"
_NOT_COMPILED = {"block_packing", "elf", "native", "semaphores", "team"}
"""Modules here that do not go into the object file."""


class CompilationError(RuntimeError):
    """The kernels could not be compiled; the message holds the compiler's last line."""


class CacheWarning(UserWarning):
    """The compiled kernels cannot be kept; the message says where and what to do."""


class Library:
    """Loaded kernels; `run(program, count, state, thread)` is interpreter.enter, without the GIL, from any thread."""

    def __init__(self, data: bytes) -> None:
        self._result = ctypes.c_void_p()
        self._result_at = ctypes.addressof(self._result)
        self._holder: object
        try:
            image = Image(data)
            self._holder, entry = image, image.symbol(_ENTRY)
        except Unsupported:
            self._holder, entry = _load_through_llvm(data)
        self._function = _KIND(entry)

    def run(self, program: int, count: int, state: int, thread: int) -> None:
        self._function(self._result_at, self._result_at, program, count, state, thread)


def _load_through_llvm(data: bytes) -> tuple[object, int]:
    import llvmlite.binding as llvm
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(data))
    engine.finalize_object()
    return engine, engine.get_function_address(_ENTRY)


def cache_folder() -> Path:
    """Where compiled kernels are kept: $EDGERT_CACHE, or the user's cache folder."""
    base = os.environ.get("EDGERT_CACHE") or platformdirs.user_cache_dir("edgert")
    return Path(base) / "kernels"


def _processor() -> str:
    """What distinguishes this processor for the compiler: compiled code is for one model, not for a family."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return machine()
    keys = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part", "CPU implementer")
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return "|".join(found.get(key, "") for key in keys)


def _release(package: str) -> bytes:
    """What tells a package's releases apart, without importing it (0.1 ms; importlib.metadata takes 14 of them)."""
    spec = importlib.util.find_spec(package)
    file = Path(spec.origin).with_name("_version.py") if spec and spec.origin else None
    return file.read_bytes() if file and file.is_file() else b""


@functools.cache
def _key(target: str) -> str:
    digest = xxhash.xxh3_128()
    sources = [path for path in Path(__file__).parent.rglob("*.py") if path.stem not in _NOT_COMPILED]
    for path in sorted(sources):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for package in ("numba", "llvmlite"):
        digest.update(_release(package))
    overrides = [os.environ.get(name, "") for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")]
    digest.update("|".join([sys.platform, machine(), target, _processor(), *overrides]).encode())
    return digest.hexdigest()


def cached_object(target: str) -> Path:
    """Where the object file for a target of this machine is, or will be."""
    return cache_folder() / f"{target}-{_key(target)}.o"


def _read(path: Path) -> bytes | None:
    """A cached object, if it is whole: its own hash stands at its end."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[:-8] if len(data) > 8 and xxhash.xxh3_64_digest(data[:-8]) == data[-8:] else None


def _write(path: Path, data: bytes) -> None:
    """Keep an object. Warns with CacheWarning where that cannot be: it costs time at every start, nothing else."""
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(data + xxhash.xxh3_64_digest(data))
        Path(part).replace(path)
    except OSError as error:
        if part is not None:
            with contextlib.suppress(OSError):
                Path(part).unlink()
        why = (error.strerror or str(error)).lower()
        warnings.warn(f"{path}: the compiled kernels cannot be kept ({why}), so every start compiles them again, for "
                      "a minute or two; set EDGERT_CACHE to a folder that can be written", CacheWarning, stacklevel=1)


def _compile(target: str, progress: Progress) -> bytes:
    if getattr(sys, "frozen", False):  # the executable is an application, not a Python to start
        from .compiler import compile_object
        return compile_object(progress)
    with tempfile.TemporaryDirectory(prefix="edgert-") as folder:
        out, errors = Path(folder) / "kernels.o", Path(folder) / "errors"
        # -P: nothing in the current folder is taken for a module. Errors go to a file: a pipe that nobody reads while
        # standard output is read would fill up, and stop the compiler.
        command = [sys.executable, "-P", "-m", "edgert.kernels.compiler", str(out)]
        with errors.open("wb") as sink, subprocess.Popen(
                command, env={**os.environ, VARIABLE: target}, stdout=subprocess.PIPE, stderr=sink,
                text=True) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    number, _, rest = line.partition(" ")
                    if number.isdigit():
                        count, _, name = rest.strip().partition(" ")
                        progress(int(number), int(count), name)
            except BaseException:
                process.kill()
                raise
        if process.returncode or not out.exists():
            last = errors.read_text(errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise CompilationError(f"compiling the kernels for {target} failed: {last[0]}")
        return out.read_bytes()


def object_file(target: str, progress: Progress = lambda number, count, name: None) -> bytes:
    """The kernels' object file for a target, from the cache or compiled now.

    Raises CompilationError; warns with CacheWarning.
    """
    path = cached_object(target)
    data = _read(path)
    if data is None:
        data = _compile(target, progress)
        _write(path, data)
    return data


_loaded: dict[str, Library] = {}


def library(target: str | None = None, progress: Progress = lambda number, count, name: None) -> Library:
    """The kernels for a target (by default the best of this machine), loaded once in a process.

    Raises ValueError for a processor without kernels, CompilationError.
    """
    name = target or choose().name
    if name not in _loaded:
        _loaded[name] = Library(object_file(name, progress))
    return _loaded[name]
