"""The resident section: read once from end to end and checked as a whole, while what stays of it is kept.

It has one checksum, but attention matrices in it can be streamed. So their slabs' checksums are made on the way, from
the bytes that the section's checksum covers: a slab that is read later is checked against its own.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import NamedTuple

import xxhash

from edgert.bundle.header import RESIDENT, TENSOR_ALIGNMENT, Section, UnitLayout
from edgert.bundle.reader import damaged

from .file import ALIGNMENT, FlashFile
from .region import Allocator, Region

_PIECE = 1 << 20
"""Bytes to read at once."""


class _Span(NamedTuple):
    """Bytes `start` to `end` of the section: they stay, at `place` of the region, or are a slab of `matrix`."""

    start: int
    end: int
    place: int
    matrix: str | None


class Resident:
    """What stays of the resident section: all but slabs of attention matrices that are streamed.

    streamed: those matrices, each with the number of its first slab that is streamed. allocator: reserves the room.
    """

    def __init__(self, section: Section, streamed: Mapping[UnitLayout, int], allocator: Allocator) -> None:
        self._section = section
        self._streamed = streamed
        self._kept: list[_Span] = []
        at = 0
        for layout, first in sorted(streamed.items(), key=lambda item: item[0].offset):
            self._keep(at, layout.offset + layout.length - layout.bytes_of(first), allocator)
            at = layout.offset + layout.length
        self._keep(at, section.length, allocator)
        self._starts = [kept.start for kept in self._kept]

    def _keep(self, start: int, end: int, allocator: Allocator) -> None:
        if end > start:
            past = start % TENSOR_ALIGNMENT  # the padding behind a matrix
            place = allocator.reserve(past + end - start, TENSOR_ALIGNMENT) + past
            self._kept.append(_Span(start, end, place, None))

    def place(self, offset: int) -> int:
        """Where the byte at an offset in the section, one that stays, is in the region."""
        kept = self._kept[bisect_right(self._starts, offset) - 1]
        assert offset < kept.end
        return kept.place + offset - kept.start

    def _spans(self) -> list[_Span]:
        """The whole section in the order of the file, every slab that is streamed on its own."""
        slabs = [_Span(layout.offset + i * layout.unit_bytes,
                       layout.offset + min((i + 1) * layout.unit_bytes, layout.length), 0, layout.name)
                 for layout, first in self._streamed.items() for i in range(first, layout.count)]
        return sorted(self._kept + slabs)

    def load(self, file: FlashFile, region: Region, progress: Callable[[], None]) -> dict[str, list[int]]:
        """Read the section, once more if need be. Returns xxh3_64 of every slab that is streamed, by matrix.

        progress: called before each piece; what it raises ends loading. Raises BundleError.
        """
        spans, pieces, found = self._spans(), Region(_PIECE, "loading"), {}

        def attempt() -> None:
            nonlocal found
            found = self._read(file, spans, pieces, region, progress)

        try:
            file.twice(attempt)
        finally:
            pieces.close()
        return found

    def _read(self, file: FlashFile, spans: list[_Span], pieces: Region, region: Region,
              progress: Callable[[], None]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {layout.name: [] for layout in self._streamed}
        whole, of_slab, current = xxhash.xxh3_64(), xxhash.xxh3_64(), 0
        for start in range(0, self._section.length, _PIECE):
            progress()
            needed = min(_PIECE, self._section.length - start)
            file.read(self._section.offset + start, pieces.view(0, -(-needed // ALIGNMENT) * ALIGNMENT), needed)
            whole.update(pieces.view(0, needed))
            at = start
            while at < start + needed:
                span = spans[current]
                end = min(span.end, start + needed)
                data = pieces.view(at - start, end - at)
                if span.matrix is None:
                    region.view(span.place + at - span.start, end - at)[:] = data
                else:
                    of_slab.update(data)
                if end == span.end:
                    current += 1
                    if span.matrix is not None:
                        found[span.matrix].append(of_slab.intdigest())
                        of_slab.reset()
                at = end
        if whole.hexdigest() != self._section.checksum:
            raise damaged(file.path, f"section {RESIDENT!r}", self._section.offset)
        return found
