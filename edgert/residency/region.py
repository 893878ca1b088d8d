"""Large memory: anonymous mappings, requested from the operating system once and returned as a whole."""

import contextlib
import ctypes
import mmap
import threading

import numpy as np

from edgert.errors import ModelError

HUGE_PAGE = 2 << 20


class Region:
    """`size` bytes of zeroed memory at `address`, aligned to pages. A page becomes resident when it is first touched.

    what: names the memory in an error message. huge: use huge pages where the system has them, for memory that is read
    from end to end or that a disk writes to (docs/notes/streaming.md). filled: all of it will be touched right away.
    `Region.promised` is the sum of the other regions, which may become resident at any time. Raises ModelError.
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
                # What lies behind the end must not become resident together with it.
                self._map.madvise(mmap.MADV_NOHUGEPAGE, end)
        self._promise = 0
        self._promises(0 if filled else self.size)
        self._anchor = (ctypes.c_char * self.size).from_buffer(self._map, self._start)
        self.address = ctypes.addressof(self._anchor)

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """`length` bytes from `offset`; by default all bytes to the end."""
        end = self.size if length is None else offset + length
        return memoryview(self._map)[self._start + offset:self._start + end]

    def touch(self) -> None:
        """Make all of it resident now."""
        np.frombuffer(self._map, np.uint8, self.size, self._start)[::mmap.PAGESIZE] = 0
        self._promises(0)

    def filled_up_to(self, size: int) -> None:
        """`size` bytes of it, wherever, have become resident."""
        self._promises(self.size - size)

    def _promises(self, size: int) -> None:
        """Record that `size` bytes of it may still become resident."""
        with Region._lock:
            Region.promised += size - self._promise
            self._promise = size

    def close(self) -> None:
        """Free the memory; if views of it still exist, in a traceback for example, with the last of them."""
        self._promises(0)
        del self._anchor
        with contextlib.suppress(BufferError):
            self._map.close()
        del self._map


class Allocator:
    """Lays out the pieces of a region before it is made: gives each an offset; `size` is the total."""

    def __init__(self) -> None:
        self.size = 0

    def reserve(self, size: int, alignment: int = 64) -> int:
        """Reserve a piece; returns its offset."""
        offset = -(-self.size // alignment) * alignment
        self.size = offset + size
        return offset
