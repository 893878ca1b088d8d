"""Large memory: anonymous mappings, taken from the operating system once and given back whole."""

import contextlib
import ctypes
import mmap
import threading

import numpy as np

from edgert.errors import ModelError

HUGE_PAGE = 2 << 20


class Region:
    """`size` bytes of zeroed memory at `address`, aligned to pages; resident only as far as it is touched.

    huge: on huge pages where the system has them, as far as whole ones fit in: for what is read from end to end, and
    for what a disk writes to (docs/notes/streaming.md). filled: it is about to be, all of it; what is not may become
    resident at any time, and `promised` is the sum of that.
    """

    promised = 0
    _lock = threading.Lock()

    def __init__(self, size: int, what: str, *, huge: bool = False, filled: bool = False) -> None:
        self.size = max(size, 1)
        huge = huge and self.size >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE")
        try:
            # Private: a shared mapping, Python's default, gets no huge pages.
            self._map = mmap.mmap(-1, self.size + (HUGE_PAGE if huge else 0),
                                  flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError):
            raise ModelError(f"no memory for {what}: {self.size / 1e6:.0f} MB were refused; "
                             "close other programs or take a smaller model or context") from None
        self._start = 0
        if huge:
            self._start = -ctypes.addressof(ctypes.c_char.from_buffer(self._map)) % HUGE_PAGE
            end = self._start + self.size // HUGE_PAGE * HUGE_PAGE
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE, self._start, end - self._start)
                # What is behind the end must not become resident with it.
                self._map.madvise(mmap.MADV_NOHUGEPAGE, end)
        self._promise = 0
        self._promises(0 if filled else self.size)
        self._anchor = (ctypes.c_char * self.size).from_buffer(self._map, self._start)
        self.address = ctypes.addressof(self._anchor)

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """The memory from `offset`, as bytes."""
        end = self.size if length is None else offset + length
        return memoryview(self._map)[self._start + offset:self._start + end]

    def touch(self) -> None:
        """Make all of it resident now."""
        np.frombuffer(self._map, np.uint8, self.size, self._start)[::mmap.PAGESIZE] = 0
        self._promises(0)

    def _promises(self, size: int) -> None:
        """So much of it may still become resident."""
        with Region._lock:
            Region.promised += size - self._promise
            self._promise = size

    def close(self) -> None:
        """Give the memory back, with the last view of it where there still are some, in a traceback say."""
        self._promises(0)
        del self._anchor
        with contextlib.suppress(BufferError):
            self._map.close()
        del self._map


class Allocator:
    """Hands out pieces of one region that is still to be made, aligned to 64 bytes: sizes first, addresses after."""

    def __init__(self) -> None:
        self.size = 0

    def reserve(self, size: int, alignment: int = 64) -> int:
        """The offset of a new piece."""
        offset = -(-self.size // alignment) * alignment
        self.size = offset + size
        return offset
