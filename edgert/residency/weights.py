"""The weights: in memory, or on flash and streamed. Every byte is checked when it has been read."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import xxhash

from edgert.bundle import Bundle
from edgert.bundle.header import EMBEDDING, HEAD, RESIDENT, slabs
from edgert.bundle.reader import damaged
from edgert.kernels.formats import FORMATS, SLAB, TILE

from .file import ALIGNMENT, FlashFile, aligned
from .placement import Placement
from .region import Allocator, Region
from .stream import Stream, runs_of

_PIECE = 1 << 20
"""Bytes to read at once while loading."""


class Weights:
    """The weights of an open bundle: `placement` says which are loaded, the others are read by `stream` when needed.

    stop: called from a reader's thread when weights cannot be read. progress: called before each piece that is loaded;
    an exception that it raises ends loading. Raises BundleError if the bundle is damaged, ModelError if there is not
    enough memory.
    """

    def __init__(self, bundle: Bundle, file: FlashFile, placement: Placement, *, stop: Callable[[], None],
                 progress: Callable[[], None]) -> None:
        self._bundle, self._file = bundle, file
        self._units = bundle.units
        header = bundle.header
        resident = header.sections[RESIDENT]
        parts = {RESIDENT: (resident.offset, resident.offset + resident.length)}
        for section, count in placement.pinned.items():
            parts[section] = (self._units[section].start(0), self._units[section].start(count))
        if placement.embedding:
            parts[EMBEDDING] = (self._units[EMBEDDING].start(0), self._units[EMBEDDING].start(placement.embedding))
        allocator = Allocator()
        ranges = {name: aligned(*part) for name, part in parts.items()}
        places = {name: allocator.reserve(end - start, ALIGNMENT) for name, (start, end) in ranges.items()}
        self._region = Region(allocator.size, "the weights", huge=True, filled=True)
        self._starts = {name: self._region.address + places[name] + parts[name][0] - ranges[name][0] for name in parts}
        self._entries = {}
        count = 0
        for section in placement.pinned:
            self._entries[section] = count
            count += self._units[section].count
        self._table, self._counters = np.zeros(count, np.int64), np.zeros(count, np.int64)
        try:
            with ThreadPoolExecutor(placement.readers) as pool:
                jobs = [pool.submit(self._load, name, places[name], *ranges[name], parts[name], progress)
                        for name in parts]
                try:
                    for job in jobs:
                        job.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            for section, pinned in placement.pinned.items():
                entry = self._entries[section]
                self._table[entry:entry + pinned] = (
                    self._starts[section] + self._units[section].unit_bytes * np.arange(pinned))
        except BaseException:
            self._region.close()
            raise
        embedding = header.embedding
        self._rows = self._units[embedding.section]
        self._rows_pinned = placement.pinned.get(embedding.section, placement.embedding)
        self._tile_bytes = FORMATS[embedding.format].tile_bytes(embedding.columns)
        self._slab = Region(self._rows.unit_bytes + 2 * ALIGNMENT, "embeddings")
        self._matrices = self._resident_matrices()
        self.stream = self._stream(placement, stop)

    def _resident_matrices(self) -> dict[str, np.ndarray]:
        """The addresses of the slabs of every matrix in the resident section, by name."""
        return {name: self.address(name) + SLAB * FORMATS[tensor.format].tile_bytes(tensor.columns)
                * np.arange(slabs(tensor.rows), dtype=np.int64)
                for name, tensor in self._bundle.header.tensors.items()
                if tensor.section == RESIDENT and tensor.format in FORMATS}

    def _load(self, name: str, place: int, start: int, end: int, part: tuple[int, int],
              progress: Callable[[], None]) -> None:
        """Read the file from `start` to `end` into memory at offset `place`, and check the bytes of `part`."""
        view = self._region.view(place, end - start)

        def attempt() -> None:
            for at in range(0, end - start, _PIECE):
                progress()
                stop = min(at + _PIECE, end - start)
                self._file.read(start + at, view[at:stop], min(stop, part[1] - start) - at)
            self._check(name, view[part[0] - start:part[1] - start])

        self._file.twice(attempt)

    def _check(self, name: str, data: memoryview) -> None:
        """Check the resident section, or the units of another. Raises BundleError."""
        if name == RESIDENT:
            section = self._bundle.header.sections[name]
            if xxhash.xxh3_64_hexdigest(data) != section.checksum:
                raise damaged(self._bundle.path, f"section {name!r}", section.offset)
            return
        units = self._units[name]
        for i, at in enumerate(range(0, len(data), units.unit_bytes)):
            units.check(i, data[at:at + units.unit_bytes])

    def _stream(self, placement: Placement, stop: Callable[[], None]) -> Stream | None:
        runs = {section: runs_of(self._units[section], pinned, self._entries[section], placement.chunk_bytes)
                for section, pinned in placement.pinned.items()}
        if not any(runs.values()):
            return None
        body = [run for section, of in runs.items() if section != HEAD for run in of]
        return Stream(self._file, body, runs[HEAD], self._table, self._counters, slots=placement.slots,
                      slot_bytes=placement.slot_bytes, readers=placement.readers, stop=stop)

    def address(self, name: str) -> int:
        """The address of a tensor of the resident section."""
        return self._starts[RESIDENT] + self._bundle.header.tensors[name].offset

    def table(self, section: str) -> tuple[int, int]:
        """The addresses of two int64 arrays with one element per unit of a section (neuron groups, or the output head).

        The first has each unit's address, 0 while it is not in memory. The second has the address of the counter to
        decrement when a unit has been used; if nothing is streamed, there is none, and its address is 0.
        """
        entry = 8 * self._entries[section]
        return self._table.ctypes.data + entry, self._counters.ctypes.data + entry if self.stream else 0

    def matrix(self, name: str) -> tuple[int, int]:
        """Of a matrix that stands for itself, attention's or the output head: what `table` gives, by slabs."""
        if (addresses := self._matrices.get(name)) is not None:
            return addresses.ctypes.data, 0
        return self.table(self._bundle.header.tensors[name].section)

    def embedding_tiles(self, tokens: np.ndarray, staging: Region, rows: np.ndarray) -> None:
        """Find the embedding rows of tokens, reading them if need be: sets rows[i] to (address of the tile, row in it).

        tokens: int64 of shape (n,). staging: room for n tiles, for those that are read. rows: int64 of shape (n, 2).
        Raises BundleError.
        """
        rows[:, 1] = tokens % TILE
        read: dict[int, int] = {}
        for i, tile in enumerate((tokens // TILE).tolist()):
            if tile // SLAB < self._rows_pinned:
                rows[i, 0] = self._starts[self._rows.section] + tile * self._tile_bytes
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
        if self.stream is not None:
            self.stream.close()
        self._slab.close()
        self._region.close()
