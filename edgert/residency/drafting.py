"""What stays in memory, as tables of its own: the coarser model that a draft is computed with.

Groups of which only the base plane stays take part with that, groups that do not stay at all are absent; of the output
head there are the rows that stay, the first ones, which a byte-pair vocabulary has for its commonest tokens (FR-Spec,
Zhao et al. 2025). Nothing in these tables is waited for.
"""

from edgert.bundle import Header
from edgert.bundle.header import HEAD, RESIDENT
from edgert.kernels.formats import SLAB, TILE
from edgert.kernels.records import ABSENT, WAIT

from .placement import Placement
from .source import Asking
from .weights import Weights


class Drafting:
    """Where the draft's weights are: the methods of Weights that programs are built with."""

    def __init__(self, weights: Weights, header: Header, placement: Placement) -> None:
        self._weights, self._tiles = weights, placement.pinned[HEAD] * SLAB
        self._vocabulary = header.config.vocab_size
        self._in_window = {n.section for n in header.neurons} if placement.window else set()
        self._entries = {layout.name: weights.entries(layout.name) for layout in header.streamable()}
        for n in header.neurons:
            for name in (n.section, n.details):
                if name is not None:  # of a window's groups the table itself says which are there
                    entries = self._entries[name]
                    entries[entries == WAIT] = ABSENT

    @property
    def rows(self) -> int:
        """Rows of the output head."""
        return min(self._tiles * TILE, self._vocabulary)

    @staticmethod
    def possible(header: Header, placement: Placement) -> bool:
        """Whether what stays in memory makes a model: all of attention, some of every layer, some of the output head;
        and whether anything is streamed, without which there is nothing to gain."""
        if header.config.experts:
            return False  # what is in the cache is no model
        missing = [layout for layout in header.streamable() if placement.pinned[layout.name] < layout.count]
        attention = all(layout.section != RESIDENT for layout in missing)
        return (bool(missing) and attention and placement.pinned[HEAD] > 0
                and (bool(placement.window) or all(placement.pinned[n.section] for n in header.neurons)))

    def address(self, name: str) -> int:
        """The address of a tensor of the resident section."""
        return self._weights.address(name)

    def matrix(self, name: str) -> tuple[int, int]:
        """The addresses of a matrix's table and of its counters, of which there are none."""
        return self._weights.matrix(name)[0], 0

    def table(self, name: str) -> tuple[int, int]:
        """The same of a layer's neuron groups, by their section."""
        return self._weights.table(name)[0] if name in self._in_window else self._entries[name].ctypes.data, 0

    def asking(self, name: str) -> Asking:
        """A draft asks for nothing."""
        return Asking()

    def details(self, name: str | None) -> tuple[int, int]:
        """The same of the groups' detail planes."""
        return (0, 0) if name is None else self.table(name)

    def head_tiles(self, rows: int) -> int:
        """Tiles of the output head, of so many rows, that there are."""
        return min(-(-rows // TILE), self._tiles)
