"""The weights: in memory, or on flash and streamed. Every byte is checked when it has been read."""

from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np

from edgert.bundle import Bundle
from edgert.bundle.header import EMBEDDING, HEAD, PREDICTORS, RESIDENT, slabs
from edgert.kernels.formats import FORMATS, SLAB, TILE
from edgert.kernels.native import Library
from edgert.kernels.records import WAIT, WHOLE

from .experts import ExpertCache, ExpertLayer
from .file import ALIGNMENT, FlashFile, aligned
from .groups import PinnedGroups, read_units
from .loaded_predictors import LoadedPredictors
from .placement import Placement
from .region import Allocator, Region
from .resident import Resident
from .source import AllInMemory, Asking, Source, Together
from .stream import Run, Stream, runs_of
from .table import AddressTable
from .window import Window


class Weights:
    """The weights of an open bundle: `placement` says which are loaded, the others come from `source` when needed.

    library: the kernels, which put planes together. stop: called from a reader's thread when weights cannot be read.
    progress: called before each piece that is loaded; an exception that it raises ends loading. Raises BundleError if
    the bundle is damaged, ModelError if there is not enough memory.
    """

    def __init__(self, bundle: Bundle, file: FlashFile, library: Library, placement: Placement, *,
                 stop: Callable[[], None], progress: Callable[[], None]) -> None:
        self._bundle, self._file, self._placement = bundle, file, placement
        header, pinned = bundle.header, placement.pinned
        layouts = header.streamable()
        self._units, allocator = dict(bundle.units), Allocator()
        attention = {layout: pinned[layout.name] for layout in layouts if layout.section == RESIDENT}
        passed_over = {layout: first for layout, first in attention.items() if first < layout.count}
        self._resident = Resident(header.sections[RESIDENT], passed_over | dict.fromkeys(header.unused().values(), 0),
                                  allocator)
        self._predictors = LoadedPredictors(header, allocator) if header.predicts else None
        groups = {n.section: PinnedGroups(
            n, header.config, self._units[n.section], self._units[n.details] if n.details else None,
            pinned[n.section], pinned[n.details] if n.details else 0, allocator) for n in header.neurons}
        matrices = {HEAD: pinned[HEAD]} | ({EMBEDDING: placement.embedding} if placement.embedding else {})
        ranges = {name: aligned(*self._part(name, count)) for name, count in matrices.items()}
        places = {name: allocator.reserve(end - start, ALIGNMENT) for name, (start, end) in ranges.items()}
        self._layers = {n.section: layer for layer, n in enumerate(header.neurons)}
        self._table = AddressTable({layout.name: layout.count for layout in layouts})
        with ExitStack() as made:
            self._region = Region(allocator.size, "the weights", huge=True, filled=True)
            made.callback(self._region.close)
            with ThreadPoolExecutor(placement.readers) as pool:
                resident = pool.submit(self._resident.load, file, self._region, progress)
                jobs = [pool.submit(g.load, file, self._region, library, progress) for g in groups.values()]
                if self._predictors is not None:
                    jobs.append(pool.submit(self._predictors.load, file, self._region, progress))
                jobs += [pool.submit(read_units, file, self._units[name], 0, count,
                                     self._region.view(places[name], ranges[name][1] - ranges[name][0]), progress)
                         for name, count in matrices.items() if count]
                try:
                    checksums = resident.result()
                    for job in jobs:
                        job.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            self._starts = {name: self._region.address + places[name] + self._part(name, 0)[0] - ranges[name][0]
                            for name in matrices}
            for layout, first in attention.items():
                # Of slabs that stay nothing is kept: they were checked with their section, and are not read again.
                self._units[layout.name] = bundle.units_of(
                    layout, array("Q", [0] * first + checksums.get(layout.name, [])))
                if first:
                    self._put(layout.name, self.address(layout.name) + layout.unit_bytes * np.arange(first))
            for n in header.neurons:
                self._put(n.section, groups[n.section].addresses(self._region))
                if n.details:
                    self._put(n.details, np.full(pinned[n.details], WHOLE))
            self._put(HEAD, self._starts[HEAD] + self._units[HEAD].unit_bytes * np.arange(pinned[HEAD]))
            embedding = header.embedding
            self._rows = self._units[embedding.section]
            self._rows_pinned = matrices.get(embedding.section, 0)
            self._tile_bytes = FORMATS[embedding.format].tile_bytes(embedding.columns)
            self._slab = Region(self._rows.unit_bytes + 2 * ALIGNMENT, "embeddings")
            made.callback(self._slab.close)
            self._window: Window | ExpertCache | None = None
            self._whole: dict[str, np.ndarray] = {}
            """Addresses of the slabs of matrices that always stay, by name."""
            self.source = self._sources(library, stop, progress)
            made.callback(self.source.close)
            self._closing = made.pop_all()

    def _put(self, name: str, addresses: np.ndarray) -> None:
        """Enter the addresses of the units of this name that stay, the first ones."""
        at = self._table.index(name)
        self._table.entries[at:at + len(addresses)] = addresses

    def _part(self, name: str, count: int) -> tuple[int, int]:
        """Where the first `count` units of a section begin and end in the file."""
        return self._units[name].start(0), self._units[name].start(count)

    def _sources(self, library: Library, stop: Callable[[], None], progress: Callable[[], None]) -> Source:
        """What fills the table with the weights that do not stay."""
        made: list[Source] = []
        try:
            if self._placement.window:
                made.append(self._chosen_neurons(library, stop, progress))
            stream = self._stream(stop)
            made += [stream] if stream is not None else []
        except BaseException:
            for source in made:
                source.close()
            raise
        return Together(*made) if len(made) > 1 else made[0] if made else AllInMemory()

    def _chosen_neurons(self, library: Library, stop: Callable[[], None], progress: Callable[[], None]) -> Source:
        """What reads neurons when they are needed."""
        header, places = self._bundle.header, [(self._units[name], self._table.index(name)) for name in self._layers]
        if header.config.experts:
            layers = [ExpertLayer(units, first, n.expert_units(header.config).per_expert)
                      for (units, first), n in zip(places, header.neurons, strict=True)]
            self._window = experts = ExpertCache(self._file, layers, header.config.experts, self._table,
                                                 slots=self._placement.window, stop=stop)
            return experts
        self._window = window = Window(self._file, places, self._table, library, slots=self._placement.window,
                                       stop=stop)
        try:
            window.fill(progress)
        except BaseException:
            window.close()
            raise
        return window

    def _stream(self, stop: Callable[[], None]) -> Stream | None:
        """What reads weights in order for every pass; None where nothing is read so."""
        placement = self._placement
        runs = {name: runs_of(self._units[name], pinned, self._table.index(name), placement.chunk_bytes)
                for name, pinned in placement.pinned.items() if not placement.window or name not in self._layers}
        if not any(runs.values()):
            return None
        details = {n.section: n.details for n in self._bundle.header.neurons if n.details}
        body: list[Run] = []
        for name, of in runs.items():
            if name in details:  # groups in the order of use, each base before its detail
                body += sorted(of + runs[details[name]], key=lambda run: run.first)
            elif name != HEAD and name not in details.values():
                body += of
        return Stream(self._file, body, runs[HEAD], self._table, slots=placement.slots,
                      slot_bytes=placement.slot_bytes, readers=placement.readers, stop=stop)

    def address(self, name: str) -> int:
        """The address of a tensor of the resident section that stays in memory, or of a predictor's."""
        tensor = self._bundle.header.tensors[name]
        if tensor.section == PREDICTORS:
            assert self._predictors is not None
            return self._region.address + self._predictors.place + tensor.offset
        return self._region.address + self._resident.place(tensor.offset)

    def table(self, name: str) -> tuple[int, int]:
        """The addresses of the table's entries and counters (table.py) of a layer's neuron groups, by their section.

        If none of them has to be given back, there are no counters, and their address is 0.
        """
        entries, counters = self._table.addresses(name)
        streamed = self._window is None or name not in self._layers
        return entries, counters if streamed and self._placement.pinned[name] < self._units[name].count else 0

    def asking(self, name: str) -> Asking:
        """What the kernels ask for a layer's neuron groups with, by their section."""
        return Asking() if self._window is None else self._window.asking(self._layers[name])

    def entries(self, name: str) -> np.ndarray:
        """The table's entries of the units of this name that stay in memory; WAIT for the others, whether or not they
        are there just now."""
        first, pinned = self._table.index(name), self._placement.pinned[name]
        entries = np.full(self._units[name].count, WAIT, np.int64)
        entries[:pinned] = self._table.entries[first:first + pinned]
        return entries

    def head_tiles(self, rows: int) -> int:
        """Tiles of the output head, of so many rows, that there are: all."""
        return -(-rows // TILE)

    def details(self, name: str | None) -> tuple[int, int]:
        """The same of the groups' detail planes, by their section; 0 and 0 where all groups are whole."""
        if name is None or self._placement.pinned[name] == self._units[name].count:
            return 0, 0
        return self._table.addresses(name)

    def matrix(self, name: str) -> tuple[int, int]:
        """The same of the slabs of a matrix that stands for itself, attention's or the output head."""
        tensor = self._bundle.header.tensors[name]
        if tensor.section in (HEAD, EMBEDDING):
            return self.table(tensor.section)
        if name in self._placement.pinned:
            return self.table(name)
        if name not in self._whole:
            slab = SLAB * FORMATS[tensor.format].tile_bytes(tensor.columns)
            self._whole[name] = self.address(name) + slab * np.arange(slabs(tensor.rows), dtype=np.int64)
        return self._whole[name].ctypes.data, 0

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
