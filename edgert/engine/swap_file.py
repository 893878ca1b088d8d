"""Blocks of the key-value cache that have no room in memory: a file on flash, which nobody else sees.

    page of layer l in slot s    at (l * slots + s) * stride bytes; stride is a page's size, rounded up to 4096

So a layer's pages in neighbouring slots are one read. The file has no name from the start: it ends with the process.
"""

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import xxhash

from edgert.errors import BundleError, ModelError
from edgert.residency.file import ALIGNMENT, FlashFile
from edgert.residency.region import Region

_O_DIRECT = getattr(os, "O_DIRECT", 0)
_AT_ONCE = 4
"""Layers whose pages are written or read at the same time: a disk is several times as fast then."""
_THREAD_BYTES = 64 << 10
"""Of a thread's stacks."""


class SwapFile:
    """Room for `slots` blocks of `layers` pages. There is no file before something is put there, or `make` is called.
    It takes room on the disk as it is used.

    Writes and reads bypass the page cache where the file system allows that. Each page is checked when it comes back.
    """

    def __init__(self, folder: Path, layers: int, page_bytes: int, slots: int) -> None:
        self.layers, self.slots, self.folder = layers, slots, folder
        self.page_bytes, self.stride = page_bytes, stride_of(page_bytes)
        self._free = list(reversed(range(slots)))
        self._checksums = np.zeros((layers, slots), np.uint64)
        self._made = False
        self._bounce = Region(_AT_ONCE * self.stride, "pages of the cache")
        self._threads = ThreadPoolExecutor(_AT_ONCE, "edgert-swap")

    def make(self) -> None:
        """Make the file, if it is not there. Raises ModelError."""
        if self._made:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".cache-", dir=self.folder)
            try:
                os.ftruncate(handle, self.layers * self.slots * self.stride)
                self._file = FlashFile(name)
                self._written, self._direct = _open_to_write(name)
            finally:
                os.close(handle)
                os.unlink(name)  # noqa: PTH108
        except (OSError, BundleError) as error:
            raise ModelError(f"{self.folder}: the part of the key-value cache that has no room in memory cannot be put "
                             f"there: {error}") from None
        self._made = True

    @property
    def room(self) -> int:
        """How many blocks it has room for."""
        return len(self._free)

    def put(self, blocks: Sequence[Sequence[np.ndarray | None]]) -> list[int]:
        """Write blocks, each of `layers` pages, uint8 of shape (page_bytes,), None for one that is not there; the slots
        that they are in. Raises ModelError."""
        if len(blocks) > self.room:
            raise ModelError(f"the key-value cache has room for {self.slots} blocks on flash, and all are in use")
        self.make()
        self._free.sort(reverse=True)
        slots = [self._free.pop() for _ in blocks]  # neighbours are one write, and one read

        def write(layer: int, bounce: memoryview) -> None:
            there, all_pages = self._pages_of(layer, slots, blocks)
            for slot, page in zip(there, all_pages, strict=True):
                self._checksums[layer, slot] = xxhash.xxh3_64_intdigest(page.data)
            for run in self._runs(there):
                pages = all_pages[run]
                if self._as_they_are(pages) and self._write_run(pages, self._offset(layer, there[run][0])):
                    continue
                for slot, page in zip(there[run], pages, strict=True):
                    bounce[:self.page_bytes] = page.data
                    self._write(bounce, self._offset(layer, slot))

        try:
            self._for_layers(write)
            if not self._direct and hasattr(os, "posix_fadvise"):
                os.fdatasync(self._written)
                os.posix_fadvise(self._written, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            self._free += slots
            raise ModelError(f"{self.folder}: the key-value cache needs more room there, and writing failed: "
                             f"{(error.strerror or str(error)).lower()}; free some, or take a smaller "
                             "--context") from None
        return slots

    @staticmethod
    def _runs(slots: Sequence[int]) -> Iterator[slice]:
        """Parts of `slots` that follow one another in the file."""
        first = 0
        for last in range(1, len(slots) + 1):
            if last == len(slots) or slots[last] != slots[last - 1] + 1:
                yield slice(first, last)
                first = last

    @staticmethod
    def _pages_of(layer: int, slots: Sequence[int],
                  blocks: Sequence[Sequence[np.ndarray | None]]) -> tuple[list[int], list[np.ndarray]]:
        """A layer's pages that are there, and the slots of their blocks."""
        pages = [(slot, page) for slot, block in zip(slots, blocks, strict=True) if (page := block[layer]) is not None]
        return [slot for slot, _ in pages], [page for _, page in pages]

    def _as_they_are(self, pages: Sequence[np.ndarray]) -> bool:
        """Whether the file takes pages from where they are in memory, and brings them there."""
        return self.page_bytes == self.stride and all(page.ctypes.data % ALIGNMENT == 0 for page in pages)

    def _for_layers(self, work: Callable[[int, memoryview], None]) -> None:
        """work(layer, `stride` bytes of memory) for all layers, some at the same time. When one raises, what it
        raises, as soon as no other goes on."""
        def some(first: int) -> None:
            view = self._bounce.view(first * self.stride, self.stride)
            for layer in range(first, self.layers, _AT_ONCE):
                work(layer, view)

        parts = [self._threads.submit(some, first) for first in range(min(_AT_ONCE, self.layers))]
        wait(parts)
        for part in parts:
            part.result()

    def _write_run(self, pages: Sequence[np.ndarray], offset: int) -> bool:
        """Write pages that follow one another with one call, if the system does it at once."""
        try:
            return os.pwritev(self._written, [page.data for page in pages], offset) == len(pages) * self.stride
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise

    def _write(self, view: memoryview, offset: int) -> None:
        while view:
            direct = self._direct
            try:
                done = os.pwrite(self._written, view, offset)
            except OSError as error:
                if not direct or error.errno != errno.EINVAL:
                    raise
                self._direct = False  # the file system took the flag, and does not write that way
                flags = fcntl.fcntl(self._written, fcntl.F_GETFL)
                fcntl.fcntl(self._written, fcntl.F_SETFL, flags & ~_O_DIRECT)
                continue
            view, offset = view[done:], offset + done

    def read(self, layer: int, slots: Sequence[int], into: memoryview) -> None:
        """Read a layer's pages in slots that follow one another, each `stride` bytes. Raises ModelError."""
        self._checked(lambda: self._file.read(self._offset(layer, slots[0]), into, len(slots) * self.stride), layer,
                      slots, [into[number * self.stride:number * self.stride + self.page_bytes]
                              for number in range(len(slots))])

    def _checked(self, read: Callable[[], None], layer: int, slots: Sequence[int], pages: Sequence[memoryview]) -> None:
        """Read a layer's pages, and compare each with its checksum. Raises ModelError."""
        def attempt() -> None:
            read()
            for slot, page in zip(slots, pages, strict=True):
                if xxhash.xxh3_64_intdigest(page) != self._checksums[layer, slot]:
                    raise BundleError("a page does not match its checksum")

        try:
            self._file.twice(attempt)
        except BundleError as error:
            raise ModelError(f"{self.folder}: a page of the key-value cache cannot be read back ({error}); begin the "
                             "conversation anew, and check the disk") from None

    def take_back(self, slots: Sequence[int], into: Sequence[Sequence[np.ndarray | None]]) -> None:
        """Read blocks, each as it was given to `put`, or some of its pages. Raises ModelError."""
        def read(layer: int, bounce: memoryview) -> None:
            there, all_pages = self._pages_of(layer, slots, into)
            for run in self._runs(there):
                pages = all_pages[run]
                if self._as_they_are(pages):
                    self._read_run(layer, there[run], [page.data for page in pages])
                    continue
                for slot, page in zip(there[run], pages, strict=True):
                    self.read(layer, [slot], bounce)
                    page[:] = np.frombuffer(bounce, np.uint8, self.page_bytes)

        self._for_layers(read)

    def _read_run(self, layer: int, slots: Sequence[int], pages: Sequence[memoryview]) -> None:
        """Read a layer's pages that follow one another with one call. Raises ModelError."""
        self._checked(lambda: self._file.read_in_turn(self._offset(layer, slots[0]), pages), layer, slots, pages)

    def free(self, slot: int) -> None:
        """Have a slot no more."""
        self._free.append(slot)

    def _offset(self, layer: int, slot: int) -> int:
        return (layer * self.slots + slot) * self.stride

    def close(self) -> None:
        """End the file. Nothing may be reading from it."""
        self._threads.shutdown()
        if self._made:
            self._file.close()
            with contextlib.suppress(OSError):
                os.close(self._written)
        self._bounce.close()


def memory_bytes(layers: int, page_bytes: int, slots: int) -> int:
    """Bytes of memory that go with a file."""
    return _AT_ONCE * (stride_of(page_bytes) + _THREAD_BYTES) + 8 * slots * (layers + 2)


def stride_of(page_bytes: int) -> int:
    """Bytes that a page takes in the file, and where pages are read to."""
    return -(-page_bytes // ALIGNMENT) * ALIGNMENT


def _open_to_write(name: str) -> tuple[int, bool]:
    if _O_DIRECT:
        with contextlib.suppress(OSError):
            return os.open(name, os.O_WRONLY | os.O_CLOEXEC | _O_DIRECT), True
    return os.open(name, os.O_WRONLY | os.O_CLOEXEC), False
