"""What is known of pruned matrices before their bundle is written: a file beside it, which an interruption leaves.

Either a bit for each weight, whether it is kept, or what has become of the weights, as float16 times a power of two.
"""

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import xxhash

from edgert.bundle.journal import Entry, Journal
from edgert.errors import BundleError, SourceError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MAGIC = b"EDGERT PRUNING\r\n"
_CHUNK = 4 << 20
_LARGEST_EXPONENT = 15
"""Of a float16, so that the largest weight of a matrix is below 2 to this."""


class Scratch:
    """The file PATH.part.pruned of a bundle that is to be PATH, and its journal.

    A context manager: within the block no other conversion prunes for PATH. Where the block ends early, both stay if
    something is `keep`t and the source is not at fault. A file that no conversion left is refused. Raises BundleError.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._bundle = path.with_name(path.name + ".part.pruned"), path
        self._journal = Journal(self.path, "")
        self._handle = -1
        self._places: dict[str, tuple[int, int, int]] = {}
        """Of each matrix: offset, bytes a row, and the exponent of its unit."""
        self._end, self._digest = 0, xxhash.xxh3_64()
        self.kept: Entry | None = None
        """What an earlier conversion was told to `keep`, if this one goes on with it."""
        self._keeps = self.done = False
        """done: whether nobody needs it any more."""

    def __enter__(self) -> Self:
        try:
            self._open()
        except OSError as error:
            raise self._refused(error) from None
        return self

    def _open(self) -> None:
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            if not _is_ours(file):
                raise BundleError(f"{self.path}: is in the way, and is not what an interrupted conversion leaves; move "
                                  "it, or give the bundle another name")
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _claim(self._handle, self.path, self._bundle)
        except BundleError:
            os.close(self._handle)
            raise
        # What there is stays until it is known whether it is gone on with, also where that is never found out.
        self._keeps = self._journal.path.exists()

    def begin(self, key: str) -> None:
        """Go on with what was `keep`t with the same key, which is all that it depends on; or begin anew, with nothing.
        """
        self._journal = Journal(self.path, key)
        entry = self._journal.read()
        if entry is not None and self._is_written(entry):
            self._places = {name: tuple(place) for name, place in entry.state["places"].items()}
            self.kept, self._end = entry, entry.written["all"]
            return
        self._keeps = False
        self._journal.remove()
        try:
            os.ftruncate(self._handle, 0)
        except OSError as error:
            raise self._refused(error) from None
        self._append(_MAGIC)

    def _is_written(self, entry: Entry) -> bool:
        """Whether all is there that was kept."""
        digest, done, length = xxhash.xxh3_64(), 0, entry.written["all"]
        while done < length and (part := os.pread(self._handle, min(_CHUNK, length - done), done)):
            digest.update(part)
            done += len(part)
        if done < length or digest.hexdigest() != entry.digests["all"]:
            return False
        self._digest = digest
        return True

    def put_kept(self, name: str, kept: np.ndarray) -> None:
        """Of a matrix, which weights are kept: bool of shape (rows, columns)."""
        bits = np.packbits(kept, axis=1)
        self._put(name, bits, bits.shape[1], 0)

    def put_values(self, name: str, values: np.ndarray) -> None:
        """A matrix, float32 of shape (rows, columns)."""
        exponent = int(np.frexp(np.abs(values).max())[1]) - _LARGEST_EXPONENT
        self._put(name, np.ldexp(values, -exponent).astype(np.float16), 2 * values.shape[1], exponent)

    def _put(self, name: str, data: np.ndarray, row_bytes: int, exponent: int) -> None:
        self._places[name] = self._end, row_bytes, exponent
        self._append(np.ascontiguousarray(data).view(np.uint8).data)

    def _append(self, data: Any) -> None:
        view, done = memoryview(data).cast("B"), 0
        try:
            while done < len(view):
                done += os.pwrite(self._handle, view[done:done + (1 << 30)], self._end + done)
        except OSError as error:
            raise self._refused(error) from None
        self._digest.update(view)
        self._end += len(view)

    def read_kept(self, name: str, start: int, stop: int, columns: int) -> np.ndarray:
        """Of some rows of a matrix, which weights are kept: bool of shape (rows, columns)."""
        return np.unpackbits(self._rows(name, start, stop), axis=1, count=columns).view(bool)

    def read_values(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of a matrix, float32 of shape (rows, columns)."""
        return np.ldexp(self._rows(name, start, stop).view(np.float16).astype(np.float32), self._places[name][2])

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        first, row_bytes, _ = self._places[name]
        rows = np.empty((stop - start, row_bytes), np.uint8)
        view, done = rows.data.cast("B"), 0
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(first + start * row_bytes)
                while done < len(view) and (count := file.readinto(view[done:])):
                    done += count
        except OSError as error:
            raise self._refused(error) from None
        if done < len(view):
            raise BundleError(f"{self.path}: has become shorter while it was in use; convert the model again")
        return rows

    def keep(self, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Have what there is stay if the block ends early; state and arrays are what to go on with. Where there is no
        room for that nothing changes."""
        with contextlib.suppress(OSError):
            os.fsync(self._handle)
            self._journal.write(Entry({"all": self._end}, {"all": self._digest.hexdigest()},
                                      {**state, "places": self._places}, arrays))
            self._keeps = True

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if self.done or not self._keeps or isinstance(error, SourceError):
            with contextlib.suppress(OSError):
                self.path.unlink()
            self._journal.remove()
        with contextlib.suppress(OSError):
            os.close(self._handle)

    def __getstate__(self) -> dict[str, Any]:
        """For workers of a cluster, which read it at the same path."""
        return {"path": self.path, "_bundle": self._bundle, "_places": self._places}

    def _refused(self, error: OSError) -> BundleError:
        why = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error)).lower()
        return BundleError(f"{self.path}: cannot be used: {why}; choose another place or free some space")


def is_left(path: Path) -> bool:
    """Whether an interrupted conversion to `path` has left what it had pruned, or searched for amounts."""
    return any(Journal(left, "").path.exists() for left in _left(path))


def remove_left(path: Path) -> None:
    """Remove what an interrupted conversion to `path` has left, which nobody goes on with. Raises BundleError where it
    was not interrupted."""
    scratch = _left(path)[0]
    with contextlib.suppress(OSError), scratch.open("rb") as file:
        _claim(file.fileno(), scratch, path)
        if _is_ours(file):
            scratch.unlink()
    for left in _left(path):
        Journal(left, "").remove()


def _is_ours(file: BinaryIO) -> bool:
    """Whether a file, which is at its start, is a scratch file, perhaps one that was only just begun."""
    return _MAGIC.startswith(file.read(len(_MAGIC)))


def _claim(handle: int, scratch: Path, bundle: Path) -> None:
    """Lock a scratch file for as long as it is open. Raises BundleError where another conversion has it, or has just
    removed it."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(handle), scratch.lstat())
    except OSError as error:
        ours = not isinstance(error, BlockingIOError | FileNotFoundError)  # some file systems have no locks
    if not ours:
        raise BundleError(f"{bundle}: another conversion is writing it; wait for that to end")


def _left(path: Path) -> list[Path]:
    return [path.with_name(f"{path.name}.part.{what}") for what in ("pruned", "search")]
