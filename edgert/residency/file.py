"""Direct file reads: from the device into our memory, without a copy in the page cache."""

import ctypes
import errno
import fcntl
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from edgert.errors import BundleError

from .scattered import ScatteredReader

ALIGNMENT = 4096
"""Bytes. Offset, length and address of every direct read are multiples of this."""

_O_DIRECT = getattr(os, "O_DIRECT", 0)
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)
_AT_ONCE = 1 << 30  # one call to the system reads at most 2 GiB less a page


def aligned(start: int, end: int) -> tuple[int, int]:
    """The smallest range of whole 4096-byte pages that holds bytes `start` to `end`."""
    return start // ALIGNMENT * ALIGNMENT, -(-end // ALIGNMENT) * ALIGNMENT


class FlashFile:
    """An open file whose reads leave nothing in the page cache. Any number of threads may read at once.

    size: bytes, when it was opened. direct: whether reads bypass the page cache; if the file system refuses that, when
    opening or at a read, they go through the cache and what they leave there is dropped. read_again: how many reads
    failed, or brought damaged data, and were repeated. Raises BundleError if the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.read_again = 0
        self._lock = threading.Lock()
        try:
            handle, self.direct = _open(self.path)
            self._file = os.fdopen(handle, "rb", buffering=0)
            self.size = os.fstat(handle).st_size
        except OSError as error:
            raise BundleError(f"{self.path}: cannot be opened: {(error.strerror or str(error)).lower()}") from None
        if not self.direct:
            self._read_plainly()

    def read(self, offset: int, buffer: memoryview, needed: int) -> None:
        """Fill a buffer from a file offset. The file may end first, but not before `needed` bytes were read.

        offset, and the buffer's length and address, are multiples of 4096. Raises BundleError on a read error, or if
        the file is too short.
        """
        assert offset % ALIGNMENT == 0 and len(buffer) % ALIGNMENT == 0 and needed <= len(buffer)
        # The system would say EINVAL to this too, and we would take it for a file system without direct reading.
        assert not len(buffer) or ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % ALIGNMENT == 0
        there = min(len(buffer), self.size - offset)
        done = 0
        while done < there:
            start = done // ALIGNMENT * ALIGNMENT  # after a short read, again from where a direct read may start
            try:
                got = self._read_some(offset + start, buffer[start:start + _AT_ONCE])
            except OSError as error:
                raise BundleError(f"{self.path}: reading at offset {offset + start} failed: "
                                  f"{(error.strerror or str(error)).lower()}; check the disk, or copy the file to "
                                  "another") from None
            if start + got <= done:
                break
            done = start + got
        if done < needed:
            raise BundleError(f"{self.path}: ends at offset {min(offset + done, self.size)}, before what its header "
                              "promises; the file is truncated, convert the model again")

    def read_in_turn(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill several buffers with what stands at an offset of the file, one after another; as `read`, which also says
        how they are aligned."""
        try:
            got = os.preadv(self._file.fileno(), buffers, offset) if self.direct else 0
        except OSError:
            got = 0
        if got == sum(map(len, buffers)):
            return
        for buffer in buffers:
            self.read(offset, buffer, len(buffer))
            offset += len(buffer)

    def read_scattered(self, reader: ScatteredReader, offsets: Sequence[int], size: int, memory: memoryview,
                       address: int, places: Sequence[int]) -> None:
        """Read pieces of `size` bytes at rising offsets into places of `memory`, which is at an address; as `read`,
        which says how they are aligned. Not more than scattered.MOST."""
        missing = (reader.read(self._file.fileno(), offsets, [address + place for place in places], size)
                   if self.direct else range(len(offsets)))
        for piece in missing:
            self.read(offsets[piece], memory[places[piece]:places[piece] + size], size)

    def twice(self, attempt: Callable[[], None]) -> None:
        """Call a function that reads and checks data; if it raises BundleError, call it once more.

        Both times the data comes from the device, not from a cache: cables, controllers and memory can fail for a
        moment, but data that is wrong twice is wrong on the disk. Raises what the second attempt raises.
        """
        try:
            attempt()
        except BundleError:
            with self._lock:
                self.read_again += 1
            attempt()

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        handle, direct = self._file.fileno(), self.direct
        try:
            got = os.preadv(handle, [buffer], offset)
        except OSError as error:
            if not direct or error.errno not in _REFUSED:
                raise
            self._read_plainly()
            got = os.preadv(handle, [buffer], offset)
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, offset, got, os.POSIX_FADV_DONTNEED)
        return got

    def _read_plainly(self) -> None:
        """Give up direct reads. Several threads may call this at once, each after a read that was refused."""
        handle = self._file.fileno()
        if _O_DIRECT:
            fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) & ~_O_DIRECT)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead: nobody would drop that
        self.direct = False  # last: a thread that sees it must find the flag gone

    def close(self) -> None:
        """Close the file. Nothing may be reading from it."""
        self._file.close()

    def __enter__(self) -> "FlashFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _open(path: Path) -> tuple[int, bool]:
    """Open a file; returns its descriptor, and whether its reads bypass the page cache. Raises OSError."""
    if _O_DIRECT:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | _O_DIRECT), True
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(handle, fcntl.F_NOCACHE, 1)
        except OSError:
            return handle, False
        return handle, True
    return handle, False
