"""A file of a model to convert, which must stay as it is until the bundle is written."""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
import xxhash

from edgert.errors import SourceError

_PIECE = 256 << 10
"""Bytes that are hashed, and later compared, at once."""
_REPORTED = 64
"""So many pieces are hashed between two words of how far it has come."""

Reading = Callable[[int, int], None]
"""Called with how many bytes have been read, and how many there are."""


def unheard(_done: int, _total: int) -> None:
    """A `Reading` for nobody."""


def hashes(files: Mapping[str, "SourceFile"], reading: Reading) -> dict[str, str]:
    """The SHA-256 of files, by their names. Raises SourceError, and what `reading` raises."""
    total, before, found = sum(file.size for file in files.values()), 0, {}
    for name, file in files.items():
        found[name] = file.sha256(lambda done, before=before: reading(before + done, total))  # type: ignore[misc]
        before += file.size
    return found


class SourceFile:
    """A file that is read part by part, in any order.

    `sha256` is of the very bytes that `read` gives after it: every read is compared with what was hashed. Whether
    anything else has changed `require_unchanged` finds out. All raise SourceError, also where the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise SourceError(f"{path}: there is no such file")
        self.path = path
        self._pieces: array[int] | None = None
        self._status = self._now()

    def _now(self) -> tuple[int, ...]:
        try:
            status = self.path.stat()
        except OSError as error:
            self._unreadable(error)
        return status.st_size, status.st_dev, status.st_ino, status.st_mtime_ns

    @property
    def size(self) -> int:
        """In bytes."""
        return self._status[0]

    def _unreadable(self, error: OSError) -> NoReturn:
        raise SourceError(f"{self.path}: cannot be read: {error.strerror}") from error

    def _changed(self) -> SourceError:
        return SourceError(f"{self.path}: has changed while it was being converted: wait until it is whole, "
                           "then convert it again")

    def _in_pieces(self) -> Iterator[bytes]:
        """The whole file. What the caller does with a piece is not taken for a failure to read."""
        try:
            with self.path.open("rb") as file:
                while piece := file.read(_PIECE):
                    yield piece
        except OSError as error:
            self._unreadable(error)

    def sha256(self, reading: Callable[[int], None]) -> str:
        """Hexadecimal SHA-256; the whole file is read for it. reading(bytes): how far that has come."""
        digest, pieces = hashlib.sha256(), array("Q")
        for piece in self._in_pieces():
            digest.update(piece)
            pieces.append(xxhash.xxh3_64_intdigest(piece))
            if len(pieces) % _REPORTED == 0:
                reading(len(pieces) * _PIECE)
        self.require_unchanged()  # so that there are as many pieces as `read` takes for granted
        self._pieces = pieces
        return digest.hexdigest()

    def read(self, offset: int, size: int) -> np.ndarray:
        """`size` bytes at `offset`, uint8.

        A read and not a memory map: a map counts as our memory, and where the file shrinks it ends the process.
        """
        first, last = offset // _PIECE, -(-(offset + size) // _PIECE)
        start = first * _PIECE
        buffer = self._read(start, min(last * _PIECE, max(self._status[0], offset + size)) - start)
        if self._pieces is not None:
            for number in range(first, last):
                piece = buffer[number * _PIECE - start:][:_PIECE]
                if xxhash.xxh3_64_intdigest(piece.data) != self._pieces[number]:
                    raise self._changed()
        return buffer[offset - start:offset - start + size]

    def _read(self, offset: int, size: int) -> np.ndarray:
        buffer = np.empty(size, dtype=np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(offset)
                filled = 0
                while filled < size and (count := file.readinto(buffer[filled:].data)):
                    filled += count
        except OSError as error:
            self._unreadable(error)
        if filled < size:
            raise self._changed()
        return buffer

    def require_unchanged(self) -> None:
        """Compares size, time and identity with those at the beginning."""
        if self._now() != self._status:
            raise self._changed()
