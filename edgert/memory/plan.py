"""The memory plan: how the budget is used, and what has to be read from flash for each token because of that.

The plan is made before anything is loaded. First comes what the process itself needs and what every token needs; all
that is left goes to weights that stay in memory (*pinned*). A token needs every weight, so each pinned byte saves
reading one byte per token, whichever it is. The weights that are read (*streamed*) are therefore spread evenly over the
layers and the output head, which keeps the disk busy all the time with little read ahead. Only attention's matrices go
before the others: they are short, and so are reads of them. An embedding that is not also the output head comes last: a
token needs only one row of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgert.bundle import Header
from edgert.bundle.header import EMBEDDING, HEAD, RESIDENT, TENSOR_ALIGNMENT, UnitLayout
from edgert.engine.buffers import buffer_bytes, phases, segment_start
from edgert.engine.session import session_bytes
from edgert.errors import ModelError
from edgert.kernels.formats import FORMATS, SLAB
from edgert.residency import stream
from edgert.residency.device import Device
from edgert.residency.file import ALIGNMENT
from edgert.residency.placement import Placement

from .budget import page_table_bytes, size_text

_GROWTH = 8 << 20
"""Bytes that the process grows by after the plan was made: Python objects, modules, templates, the allocator."""
_THREAD_BYTES = 64 << 10
"""Bytes of a thread's stacks, its own and the kernel's, that are in use: 44 KiB were measured for a thread that
computes, 60 for one that reads."""
_TOKEN_BYTES = 64
"""Bytes that a token of the conversation takes in Python's lists."""
_MARGIN = 2 << 20
"""Added to a budget that is told to the user: the process is not always of the same size when the plan is made."""
_UNIT_BYTES = 64
"""Bytes of the checksum and the table entry of a unit."""
_LOGITS_COPIES = 6
"""Rows of logits that are in memory at once: those of a token, and the copies that sampling makes of them."""
_SHARE_OF_CHUNK = 12
"""Computing many prompt tokens at once saves reading, but its buffers may take at most 1/12 of the budget."""
_CHUNK_STEP = 16
"""The number of prompt tokens at once is a multiple of this; fewer than this would save next to no memory."""


@dataclass(frozen=True)
class Plan:
    """How memory is used.

    budget: bytes. parts: bytes by purpose, together no more than the budget. streamed: bytes read for each token.
    weights: bytes of weights that a token needs, from memory or flash. chunk: prompt tokens computed at once.
    logit_rows: how many tokens' logits may be in memory at once. smallest: the smallest budget that works with these
    settings. placement: which weights stay in memory. disk: the device that the others are read from; None if all
    weights stay in memory.
    """

    budget: int
    parts: dict[str, int]
    streamed: int
    weights: int
    chunk: int
    logit_rows: int
    smallest: int
    placement: Placement
    disk: Device | None

    @property
    def pinned_share(self) -> float:
        """The fraction of the weights that stays in memory."""
        return 1 - self.streamed / self.weights

    @property
    def summary(self) -> str:
        """The plan in one line, for people."""
        if self.disk is None:
            return f"{size_text(self.needed)}, with all weights"
        return (f"{size_text(self.budget)}; {100 * self.pinned_share:.0f} % of the weights stay in it, "
                f"{size_text(self.streamed)} are read for each token")

    @property
    def needed(self) -> int:
        """Bytes of all parts together."""
        return sum(self.parts.values())


class Planner:
    """Makes plans for one bundle and its settings. process: bytes that the process uses before anything is loaded."""

    def __init__(self, header: Header, *, process: int, context: int, cache_type: str, chunk: int,
                 threads: int) -> None:
        self._header, self._process, self._threads = header, process, threads
        self._chunk, self._context = min(chunk, context), context
        config = header.config
        self._session = session_bytes(config, context, cache_type)
        self._tokens = _TOKEN_BYTES * context
        self._logits = 4 * config.vocab_size
        self._embedding = next((layout for layout in header.unit_layouts() if layout.name == EMBEDDING), None)
        self._streamable = header.streamable()
        self._attention = [layout for layout in self._streamable if layout.section == RESIDENT]
        self._others = [layout for layout in self._streamable if layout.section != RESIDENT]
        self._edges = 2 * ALIGNMENT * len(self._others) + 2 * TENSOR_ALIGNMENT * len(self._attention)
        """Bytes that are lost around what is pinned."""
        self._weights = header.sections[RESIDENT].length + _length(self._others)

    def _fixed(self, chunk: int) -> dict[str, int]:
        config, embedding = self._header.config, self._header.embedding
        tile = FORMATS[embedding.format].tile_bytes(embedding.columns)
        norms = self._weights - _length(self._streamable)
        return {
            "process": self._process,
            "growth": _GROWTH + self._logits * _LOGITS_COPIES + self._tokens + _THREAD_BYTES * self._threads
            + page_table_bytes(norms) + _UNIT_BYTES * sum(s.count for s in self._streamable),
            "norms and biases": norms,
            "key-value cache": self._session,
            "working memory": buffer_bytes(config, self._header, chunk, self._threads, self._context) + chunk * tile
            + SLAB * tile + 2 * ALIGNMENT,
        }

    def plan(self, budget: int | None, device: Callable[[], Device], *, most: int = 0,
             what: str = "a budget") -> Plan:
        """Make the plan for a budget in bytes; None for as much as it takes to keep everything in memory.

        device: called to measure the disk, if weights have to be streamed. most: a budget that is too small may be
        raised up to this. what: names the budget in an error message.
        Raises ModelError if the budget is too small, and tells the smallest that works.
        """
        whole, everything = self.whole, Placement({s.name: s.count for s in self._streamable})
        if budget is None:
            budget = whole + (self._embedding_bytes(self._embedding.count) if self._embedding else 0)
        if whole <= budget:
            everything = replace(everything, embedding=self._embedding_units(budget - whole))
            return self._made(budget, self._chunk, everything, smallest=0, disk=None)
        disk = device()
        smallest = self.smallest(disk)
        if budget < smallest <= most:
            return self.plan(smallest, lambda: disk)
        if budget < smallest:
            raise ModelError(f"{what} of {size_text(max(budget, most))} is too small: this model needs at least "
                             f"{self.named(smallest) >> 20} MiB with these settings; a smaller context takes less, and "
                             f"with {self.named(whole) >> 20} MiB nothing is read from flash")
        chunk = self._chunk_for(budget, disk)
        left = budget - self._smallest_with(self._fixed(chunk), disk)
        pinned = self._pinned(left - page_table_bytes(left), disk.chunk_bytes)
        placement = Placement(pinned, 0, disk.chunk_bytes, disk.readers, self.slots(disk), self.slot_bytes(disk))
        if placement.pinned == everything.pinned:  # fewer prompt tokens at once leave room for all
            return self._made(budget, chunk, everything, smallest=0, disk=None)
        return self._made(budget, chunk, placement, smallest=smallest, disk=disk)

    def _chunk_for(self, budget: int, disk: Device) -> int:
        """How many prompt tokens to compute at once: as many as _SHARE_OF_CHUNK allows.

        Chosen in small steps, so that a larger budget never leaves noticeably less for weights.
        """
        for chunk in (self._chunk, *range((self._chunk - 1) // _CHUNK_STEP * _CHUNK_STEP, 0, -_CHUNK_STEP)):
            fixed = self._fixed(chunk)
            if fixed["working memory"] <= budget // _SHARE_OF_CHUNK and self._smallest_with(fixed, disk) <= budget:
                return chunk
        return min(_CHUNK_STEP, self._chunk)

    def _made(self, budget: int, chunk: int, placement: Placement, *, smallest: int, disk: Device | None) -> Plan:
        parts = {**self._fixed(chunk), "read ahead": self._ahead(disk) if disk else 0}
        held = _bytes_pinned(self._streamable, placement.pinned)
        parts["growth"] += page_table_bytes(held)
        parts["pinned attention"] = _bytes_pinned(self._attention, placement.pinned)
        parts["pinned neurons"] = _bytes_pinned([s for s in self._others if s.name != HEAD], placement.pinned)
        parts["pinned output head"] = _bytes_pinned([s for s in self._others if s.name == HEAD], placement.pinned)
        parts["pinned embedding"] = self._embedding_bytes(placement.embedding)
        rows = _LOGITS_COPIES + (budget - sum(parts.values())) // self._logits
        streamed = _length(self._streamable) - held
        return Plan(budget, parts, streamed, self._weights, chunk, rows, smallest, placement, disk)

    def _embedding_bytes(self, units: int) -> int:
        """Bytes that the first `units` of an embedding take in memory, if it is not also the output head."""
        if not units:
            return 0
        assert self._embedding is not None
        size = units * self._embedding.unit_bytes
        return size + page_table_bytes(size) + units * _UNIT_BYTES + 2 * ALIGNMENT

    def _embedding_units(self, left: int) -> int:
        """How many units of such an embedding fit into `left` bytes."""
        if self._embedding is None:
            return 0
        units = min(left // self._embedding.unit_bytes, self._embedding.count)
        while units > 0 and self._embedding_bytes(units) > left:
            units -= 1
        return units

    @property
    def whole(self) -> int:
        """The smallest budget with which nothing is streamed, in bytes."""
        size = _length(self._streamable)
        return sum(self._fixed(self._chunk).values()) + size + page_table_bytes(size) + self._edges

    def smallest(self, disk: Device) -> int:
        """The smallest budget that works, in bytes: with all streamed that can be, unless keeping it takes less."""
        return min(self._smallest_with(self._fixed(min(_CHUNK_STEP, self._chunk)), disk), self.whole)

    @staticmethod
    def named(budget: int) -> int:
        """A budget as it is told to the user: in whole MiB, with a margin for differences between processes."""
        return -(-(budget + _MARGIN) // (1 << 20)) << 20

    def _smallest_with(self, fixed: dict[str, int], disk: Device) -> int:
        return sum(fixed.values()) + self._ahead(disk) + self._edges

    def slot_bytes(self, disk: Device) -> int:
        """Bytes of a slot, which has room for any single read."""
        return stream.slot_bytes((s.unit_bytes for s in self._streamable), disk.chunk_bytes)

    def slots(self, disk: Device) -> int:
        """How many slots: enough for each reader to fill one while a phase of prefill (buffers.phases) uses its own.

        Everything else needs fewer: it gives each unit back before it waits for the next.
        """
        held = 0
        for neurons in self._header.neurons:
            most = max(segment_start(neurons.groups, last) - segment_start(neurons.groups, first)
                       for first, last in phases(neurons.groups, self._threads))
            held = max(held, -(-most // stream.run_units(neurons.group_bytes, disk.chunk_bytes)) + 1)
        return held + disk.readers

    def _ahead(self, disk: Device) -> int:
        ring = stream.ring_bytes(self.slots(disk), self.slot_bytes(disk))
        return ring + self._runs_bytes(disk.chunk_bytes) + _THREAD_BYTES * disk.readers

    def _runs_bytes(self, chunk_bytes: int) -> int:
        runs = sum(-(-s.count // stream.run_units(s.unit_bytes, chunk_bytes)) for s in self._streamable)
        return stream.RUN_BYTES * runs

    def _pinned(self, left: int, chunk_bytes: int) -> dict[str, int]:
        """How many units of each to pin in `left` bytes: attention's first."""
        attention = _length(self._attention)
        pinned = _spread(self._attention, min(left, attention), chunk_bytes)
        pinned |= _spread(self._others, max(left - attention, 0), chunk_bytes)
        return {s.name: pinned[s.name] for s in self._streamable}


def _length(layouts: Iterable[UnitLayout]) -> int:
    """Bytes of all units."""
    return sum(layout.length for layout in layouts)


def _bytes_pinned(layouts: Iterable[UnitLayout], pinned: Mapping[str, int]) -> int:
    return sum(layout.length - layout.bytes_of(pinned[layout.name]) for layout in layouts)


def _spread(layouts: Sequence[UnitLayout], left: int, chunk_bytes: int) -> dict[str, int]:
    """How many units of each to pin in `left` bytes: so that what is streamed of any first few of them is as large a
    part of them as of all, and makes whole runs if possible."""
    length = _length(layouts)
    share = 1 - min(left / length, 1.0)
    pinned, wanted, streamed = {}, 0.0, 0
    for layout in layouts:
        wanted += share * layout.length
        run = stream.run_units(layout.unit_bytes, chunk_bytes)
        first = layout.count
        while first > 0 and streamed + layout.bytes_of(first) < wanted:
            first = max(first - run, 0)
        pinned[layout.name] = first
        streamed += layout.bytes_of(first)
    # Rounding to runs must not have pinned too much.
    for layout in reversed(layouts):
        while length - streamed > left and pinned[layout.name]:
            streamed -= layout.bytes_of(pinned[layout.name])
            pinned[layout.name] -= 1
            streamed += layout.bytes_of(pinned[layout.name])
    return pinned
