"""A file whose reads fail when a test wants it."""

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path

from edgert.errors import BundleError
from edgert.residency.file import FlashFile


class FaultyFile(FlashFile):
    """A file whose read number `fail_at` does not end well, nor so many of the same place after it."""

    def __init__(self, path: Path, fail_at: int, fault: str, again: int = 1) -> None:
        super().__init__(path)
        self.count, self.fail_at, self.fault, self.again = itertools.count(), fail_at, fault, again
        self.reads = 0
        self.offset: int | None = None
        self.hang = threading.Event()

    def read(self, offset: int, buffer: memoryview, needed: int) -> None:
        number = next(self.count)
        self.reads = number + 1
        fails = number == self.fail_at or (offset == self.offset and self.again > 0)
        if fails:
            self.again -= self.offset is not None
            self.offset = offset
            if self.fault == "error":
                raise BundleError(f"{self.path}: reading at offset {offset} failed: input/output error")
            if self.fault == "unforeseen":
                raise ZeroDivisionError("of no kind that is expected here")
            if self.fault == "hang":
                self.hang.wait()
        super().read(offset, buffer, needed)
        if fails and self.fault == "flip":
            buffer[needed - 1] ^= 1  # the last byte of what is wanted

    def read_scattered(self, reader: object, offsets: Sequence[int], size: int, memory: memoryview, address: int,
                       places: Sequence[int]) -> None:
        for offset, place in zip(offsets, places, strict=True):
            self.read(offset, memory[place:place + size], size)
