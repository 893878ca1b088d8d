"""The weights: in memory, or on flash and streamed. Every byte is checked when it has been read."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np

from edgert.bundle import Bundle
from edgert.bundle.header import EMBEDDING, HEAD, RESIDENT
from edgert.kernels.formats import FORMATS, SLAB, TILE

from .file import ALIGNMENT, FlashFile, aligned
from .placement import Placement
from .region import Allocator, Region
from .resident import Resident
from .source import AllInMemory, Source
from .stream import Stream, runs_of
from .table import AddressTable

_PIECE = 1 << 20
"""Bytes to read at once while loading."""


class Weights:
    """The weights of an open bundle: `placement` says which are loaded, the others come from `source` when needed.

    stop: called from a reader's thread when weights cannot be read. progress: called before each piece that is loaded;
    an exception that it raises ends loading. Raises BundleError if the bundle is damaged, ModelError if there is not
    enough memory.
    """

    def __init__(self, bundle: Bundle, file: FlashFile, placement: Placement, *, stop: Callable[[], None],
                 progress: Callable[[], None]) -> None:
        self._bundle, self._file, self._placement = bundle, file, placement
        header = bundle.header
        layouts = header.streamable()
        self._units, allocator = dict(bundle.units), Allocator()
        attention = {layout: placement.pinned[layout.name] for layout in layouts if layout.section == RESIDENT}
        self._resident = Resident(header.sections[RESIDENT], {layout: first for layout, first in attention.items()
                                                              if first < layout.count}, allocator)
        parts = {layout.name: self._part(layout.name, placement.pinned[layout.name])
                 for layout in layouts if layout.section != RESIDENT}
        if placement.embedding:
            parts[EMBEDDING] = self._part(EMBEDDING, placement.embedding)
        ranges = {name: aligned(*part) for name, part in parts.items()}
        places = {name: allocator.reserve(end - start, ALIGNMENT) for name, (start, end) in ranges.items()}
        self._table = AddressTable({layout.name: layout.count for layout in layouts})
        with ExitStack() as made:
            self._region = Region(allocator.size, "the weights", huge=True, filled=True)
            made.callback(self._region.close)
            with ThreadPoolExecutor(placement.readers) as pool:
                resident = pool.submit(self._resident.load, file, self._region, progress)
                jobs = [pool.submit(self._load, name, places[name], *ranges[name], parts[name], progress)
                        for name in parts]
                try:
                    checksums = resident.result()
                    for job in jobs:
                        job.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            self._starts = {name: self._region.address + places[name] + parts[name][0] - ranges[name][0]
                            for name in parts}
            for layout, first in attention.items():
                self._starts[layout.name] = self.address(layout.name) if first else 0
                # Of slabs that stay nothing is kept: they were checked with their section, and are not read again.
                self._units[layout.name] = bundle.units_of(layout, [0] * first + checksums.get(layout.name, []))
            for layout in layouts:
                pinned, at = placement.pinned[layout.name], self._table.index(layout.name)
                self._table.entries[at:at + pinned] = (
                    self._starts[layout.name] + layout.unit_bytes * np.arange(pinned))
            embedding = header.embedding
            self._rows = self._units[embedding.section]
            self._rows_pinned = placement.pinned.get(embedding.section, placement.embedding)
            self._tile_bytes = FORMATS[embedding.format].tile_bytes(embedding.columns)
            self._slab = Region(self._rows.unit_bytes + 2 * ALIGNMENT, "embeddings")
            made.callback(self._slab.close)
            self.source = self._source(stop)
            made.callback(self.source.close)
            self._closing = made.pop_all()

    def _part(self, name: str, count: int) -> tuple[int, int]:
        """Where the first `count` units of a section begin and end in the file."""
        return self._units[name].start(0), self._units[name].start(count)

    def _load(self, name: str, place: int, start: int, end: int, part: tuple[int, int],
              progress: Callable[[], None]) -> None:
        """Read the file from `start` to `end` into memory at offset `place`, and check the units in `part`."""
        view = self._region.view(place, end - start)

        def attempt() -> None:
            for at in range(0, end - start, _PIECE):
                progress()
                stop = min(at + _PIECE, end - start)
                self._file.read(start + at, view[at:stop], min(stop, part[1] - start) - at)
            units, data = self._units[name], view[part[0] - start:part[1] - start]
            for i, at in enumerate(range(0, len(data), units.unit_bytes)):
                units.check(i, data[at:at + units.unit_bytes])

        self._file.twice(attempt)

    def _source(self, stop: Callable[[], None]) -> Source:
        """What fills the table with the weights that do not stay."""
        placement = self._placement
        runs = {name: runs_of(self._units[name], pinned, self._table.index(name), placement.chunk_bytes)
                for name, pinned in placement.pinned.items()}
        if not any(runs.values()):
            return AllInMemory()
        body = [run for name, of in runs.items() if name != HEAD for run in of]
        return Stream(self._file, body, runs[HEAD], self._table, slots=placement.slots,
                      slot_bytes=placement.slot_bytes, readers=placement.readers, stop=stop)

    def address(self, name: str) -> int:
        """The address of a tensor of the resident section that stays in memory."""
        return self._region.address + self._resident.place(self._bundle.header.tensors[name].offset)

    def table(self, name: str) -> tuple[int, int]:
        """The addresses of the table's entries and counters (table.py) of a layer's neuron groups, by their section.

        If all of them stay in memory, there are no counters, and their address is 0.
        """
        entries, counters = self._table.addresses(name)
        return entries, counters if self._placement.pinned[name] < self._units[name].count else 0

    def matrix(self, name: str) -> tuple[int, int]:
        """The same of the slabs of a matrix that stands for itself, attention's or the output head."""
        section = self._bundle.header.tensors[name].section
        return self.table(name if section == RESIDENT else section)

    def embedding_tiles(self, tokens: np.ndarray, staging: Region, rows: np.ndarray) -> None:
        """Find the embedding rows of tokens, reading them if need be: sets rows[i] to (address of the tile, row in it).

        tokens: int64 of shape (n,). staging: room for n tiles, for those that are read. rows: int64 of shape (n, 2).
        Raises BundleError.
        """
        rows[:, 1] = tokens % TILE
        read: dict[int, int] = {}
        for i, tile in enumerate((tokens // TILE).tolist()):
            if tile // SLAB < self._rows_pinned:
                rows[i, 0] = self._starts[self._rows.name] + tile * self._tile_bytes
                continue
            if tile not in read:
                read[tile] = len(read) * self._tile_bytes
                staging.view(read[tile], self._tile_bytes)[:] = self._read_tile(tile)
            rows[i, 0] = staging.address + read[tile]

    def _read_tile(self, tile: int) -> memoryview:
        slab = tile // SLAB
        first, last = self._rows.start(slab), self._rows.start(slab + 1)
        start, end = aligned(first, last)
        view = self._slab.view(0, end - start)

        def attempt() -> None:
            self._file.read(start, view, last - start)
            self._rows.check(slab, view[first - start:last - start])

        self._file.twice(attempt)
        at = first - start + tile % SLAB * self._tile_bytes
        return view[at:at + self._tile_bytes]

    def close(self) -> None:
        self._closing.close()
