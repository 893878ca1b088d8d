"""Pages of the key-value cache that are on flash, read just before the layer that needs them (as ShadowKV, Sun et al.
2024, and KVSwap, 2025, keep long contexts; here all of them come, so that nothing is lost).

Two layers' pages have places in memory: while one is computed, the next is being read.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise

import numpy as np

from edgert.errors import ModelError
from edgert.residency.region import Region
from edgert.residency.source import no_answer

from .swap_file import SwapFile, stride_of

_PLACES = 2
_LONGEST_READ_S = 30.0
_LOOK_S = 0.05
"""How often somebody who waits for a read looks whether he still shall."""


class PageStream:
    """Reads the pages of one session that are in `swap`: up to `most` of each layer, in reads of about `chunk_bytes`,
    by `readers` threads. layers: numbers of those whose pages are read; by default all. bytes: what was read. Raises
    ModelError."""

    def __init__(self, swap: SwapFile, most: int, readers: int, chunk_bytes: int,
                 layers: Sequence[int] | None = None) -> None:
        self.swap, self.most = swap, most
        self._layers = list(range(swap.layers)) if layers is None else list(layers)
        self._order = {layer: number for number, layer in enumerate(self._layers)}
        self.bytes = 0
        self._at_once = max(chunk_bytes // swap.stride, 1)
        self._region = Region(stream_bytes(most, swap.page_bytes), "what is read of the cache")
        self._pool = ThreadPoolExecutor(readers, "edgert-cache")
        self._slots: Sequence[int] = ()
        self._reads: dict[int, list[Future[None]]] = {}

    def addresses(self, count: int) -> np.ndarray:
        """Where the first `count` pages on flash of every layer that is read are when it is computed: int64 (layers,
        count)."""
        layers = np.arange(len(self._layers))[:, None] % _PLACES
        return self._region.address + (layers * self.most + np.arange(count)) * self.swap.stride

    def begin(self, slots: Sequence[int]) -> None:
        """Read for a new pass the pages in these slots, in order, layer after layer."""
        assert len(slots) <= self.most
        self._quiet()
        self._slots = slots
        for layer in self._layers[:_PLACES]:
            self._read(layer)

    def wait(self, layer: int, check: Callable[[], None]) -> None:
        """Wait until a layer's pages are there. check: called now and then; what it raises ends waiting. Raises
        ModelError if they cannot be read."""
        started = time.perf_counter()
        reads = self._reads.pop(layer, [])
        while wait(reads, _LOOK_S).not_done:
            if time.perf_counter() - started > _LONGEST_READ_S:
                raise no_answer()
            check()
        for read in reads:
            read.result()

    def done(self, layer: int) -> None:
        """A layer has been computed: its place is free."""
        if layer in self._order and self._order[layer] + _PLACES < len(self._layers):
            self._read(self._layers[self._order[layer] + _PLACES])

    def _read(self, layer: int) -> None:
        """Have a layer's pages read, those in slots that follow one another together."""
        breaks = [n for n in range(1, len(self._slots)) if self._slots[n] != self._slots[n - 1] + 1]
        borders = sorted({0, len(self._slots), *breaks, *range(0, len(self._slots), self._at_once)})
        reads = self._reads[layer] = []
        for first, last in pairwise(borders):
            start = ((self._order[layer] % _PLACES) * self.most + first) * self.swap.stride
            view = self._region.view(start, (last - first) * self.swap.stride)
            reads.append(self._pool.submit(self.swap.read, layer, self._slots[first:last], view))
            self.bytes += len(view)

    def _quiet(self) -> None:
        """Wait until nothing is being read: of a pass that was not computed to its end, some may."""
        reads = [read for some in self._reads.values() for read in some]
        self._reads = {}
        for read in reads:
            read.cancel()
        if wait(reads, _LONGEST_READ_S).not_done:
            raise no_answer()

    def touch(self) -> None:
        """Make its memory resident now."""
        self._region.touch()

    def close(self) -> None:
        """End the threads and free the memory, unless a read that does not end may still write to it."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        try:
            self._quiet()
        except ModelError:
            return
        self._region.close()


def stream_bytes(most: int, page_bytes: int) -> int:
    """Bytes of the places that pages are read to."""
    return _PLACES * most * stride_of(page_bytes)
