"""Where weights are: a bundle's tensors and neuron groups at addresses in memory, checked on their way in."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from edgert.bundle import Bundle
from edgert.bundle.header import HEAD, RESIDENT, TENSOR_ALIGNMENT
from edgert.kernels.formats import FORMATS, TILE

from .region import Allocator, Region

_GROUPS_AT_ONCE = 64


class Weights:
    """The weights of an open bundle, all in memory but an embedding that is not also the output head.

    Raises BundleError when what is read is damaged, ModelError when there is no memory.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._bundle = bundle
        header = bundle.header
        allocator = Allocator()
        self._sections = {name: allocator.reserve(header.sections[name].length, TENSOR_ALIGNMENT)
                          for name in (RESIDENT, HEAD)}
        groups = [allocator.reserve(n.groups * n.group_bytes, TENSOR_ALIGNMENT) for n in header.neurons]
        self._region = Region(allocator.size, "the weights", huge=True)
        self._tables = [np.array([self._region.address + start + i * n.group_bytes for i in range(n.groups)], np.int64)
                        for start, n in zip(groups, header.neurons, strict=True)]
        bundle.group_checksums()

        def load_section(name: str) -> None:
            bundle.load_section(name, self._region.view(self._sections[name], header.sections[name].length))

        def load_groups(layer: int, first: int, count: int) -> None:
            size = header.neurons[layer].group_bytes
            bundle.load_groups(layer, first, count, self._region.view(groups[layer] + first * size, count * size))

        with ThreadPoolExecutor(threads) as pool:
            jobs = [pool.submit(load_section, name) for name in self._sections]
            jobs += [pool.submit(load_groups, layer, first, min(_GROUPS_AT_ONCE, n.groups - first))
                     for layer, n in enumerate(header.neurons) for first in range(0, n.groups, _GROUPS_AT_ONCE)]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    @property
    def bytes(self) -> int:
        return self._region.size

    def address(self, name: str) -> int:
        """Where a tensor of the resident section or the output head stands."""
        tensor = self._bundle.header.tensors[name]
        return self._region.address + self._sections[tensor.section] + tensor.offset

    def group_table(self, layer: int) -> np.ndarray:
        """int64 of shape (groups,): where each neuron group of a layer stands."""
        return self._tables[layer]

    def embedding_tiles(self, name: str, tokens: np.ndarray, staging: Region, rows: np.ndarray) -> None:
        """Find the tokens' embedding rows: rows[i] becomes (address of the tile, row in it).

        tokens: int64 of shape (n,). staging: room for n tiles, used when the embedding is not in memory. rows: int64
        of shape (n, 2).
        """
        tensor = self._bundle.header.tensors[name]
        size = FORMATS[tensor.format].tile_bytes(tensor.columns)
        rows[:, 1] = tokens % TILE
        if tensor.section in self._sections:
            rows[:, 0] = self.address(name) + tokens // TILE * size
            return
        start = self._bundle.header.sections[tensor.section].offset + tensor.offset
        for i, tile in enumerate((tokens // TILE).tolist()):
            self._bundle.read_into(start + tile * size, staging.view(i * size, size))
            rows[i, 0] = staging.address + i * size

    def close(self) -> None:
        self._region.close()
