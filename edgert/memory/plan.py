"""The memory plan: how the budget is used, and what has to be read from flash for each pass because of that.

The plan is made before anything is loaded. First comes what the process itself needs and what every token needs; all
that is left goes to weights that stay in memory (*pinned*). A token needs every weight, so each pinned byte saves
reading one byte per token, whichever it is. What it is decides how good a draft the pinned weights make
(residency.drafting): attention's matrices come first, then the output head's rows of the commonest tokens, then the
base planes of all neurons, then two thirds of their details, the last layers' first (docs/notes/speculation.md), then
what is left of details and head. Within each of these the weights that are read (*streamed*) are spread evenly, which
keeps the disk busy with little read ahead: so a third of every layer's details comes last. Where nothing is drafted,
details and head are spread evenly together. An embedding that is not also the output head comes last: a token needs
only one row of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from edgert.bundle import Header
from edgert.bundle.header import EMBEDDING, HEAD, PREDICTORS, RESIDENT, TENSOR_ALIGNMENT
from edgert.engine.buffers import LEAST_ROWS, MOST_ROWS, buffer_bytes, phases, segment_start
from edgert.engine.prefixes import MORE_POSITIONS
from edgert.errors import ModelError
from edgert.kernels.formats import FORMATS, SLAB, TILE
from edgert.kernels.records import SEGMENTS
from edgert.models.tensors import FEED_FORWARD
from edgert.residency import stream
from edgert.residency.device import Device
from edgert.residency.file import ALIGNMENT
from edgert.residency.on_demand import READERS
from edgert.residency.placement import Placement
from edgert.sizes import size_text

from .budget import page_table_bytes
from .cache_room import CacheRoom
from .spreading import bytes_pinned, cut_at, length_of, spread_in_turn
from .window import candidates, expected_bytes, expected_hits, holds_all, least_slots, reading_s, window_bytes

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
"""Bytes of the checksum and the table entry of a unit, and what is known of when it was needed; 41 were counted."""
_ANGLE_BYTES = 16
"""Bytes for each component of a head that is rotated, each table of frequencies, and each new token, while rotary
angles are computed."""
_LOGITS_COPIES = 6
"""Rows of logits that are in memory at once: those of a token, and the copies that sampling makes of them."""
_SHARE_OF_CHUNK = 12
"""Computing many prompt tokens at once saves reading, but its buffers may take at most 1/12 of the budget."""
_SHARE_OF_ROWS = 48
"""Rows of logits that are computed at once may take at most 1/48 of the budget."""
_COMMON_SLABS, _LESS_COMMON_SLABS = 32768 // (SLAB * TILE), 16384 // (SLAB * TILE)
"""Of the output head: the rows of the commonest tokens, which are the first of a byte-pair vocabulary (FR-Spec, Zhao et
al. 2025, found a quarter of 128 thousand enough to draft with), and those that are worth more than details."""
_CHUNK_STEP = 16
"""The number of prompt tokens at once is a multiple of this; fewer than this would save next to no memory."""


@dataclass(frozen=True)
class Plan:
    """How memory is used.

    budget: bytes. parts: bytes by purpose, together no more than the budget. streamed: bytes read for each pass over
    the weights; of a sparse model, as many as are expected for one token. weights: bytes of weights that a token needs,
    from memory or flash; of a sparse model, of all. chunk: prompt tokens computed at once. verify_rows: tokens whose
    logits are computed at once, so one more than can be drafted. logit_rows: how many tokens' logits may be in memory
    at once. smallest: the smallest budget that works with these settings. placement: which weights stay in memory.
    disk: the device that the others are read from; None if all weights stay in memory. expected_hits: where experts are
    read when they are needed, the part of those that a token needs that is expected to be in memory. missed: of what is
    streamed, bytes of neurons or experts that are read when they are needed.
    """

    budget: int
    parts: dict[str, int]
    streamed: int
    weights: int
    chunk: int
    verify_rows: int
    logit_rows: int
    smallest: int
    placement: Placement
    disk: Device | None
    expected_hits: float | None = None
    missed: int = 0

    @property
    def pinned_share(self) -> float:
        """The fraction of the weights that stays in memory; of a mixture of experts, that there is room for."""
        if self.expected_hits is not None:
            held = ("norms and biases", "experts", *(name for name in self.parts if name.startswith("pinned ")))
            return min(sum(self.parts[name] for name in held if name != "pinned embedding") / self.weights, 1.0)
        return 1 - self.streamed / self.weights

    @property
    def summary(self) -> str:
        """The plan in one line, for people."""
        if self.disk is None:
            return f"{size_text(self.needed)}, with all weights"
        if self.expected_hits is not None:
            return (f"{size_text(self.budget)}; there is room in it for {100 * self.pinned_share:.0f} % of the "
                    f"weights, about {size_text(self.streamed)} are read for each token")
        return (f"{size_text(self.budget)}; {100 * self.pinned_share:.0f} % of the weights stay in it, "
                f"{size_text(self.streamed)} are read for each pass")

    @property
    def needed(self) -> int:
        """Bytes of all parts together."""
        return sum(self.parts.values())


class Planner:
    """Makes plans for one bundle and its settings.

    process: bytes that the process uses before anything is loaded. embeddings: bytes that a process of embeddings takes
    of the budget. drafting: whether what is pinned shall make a draft.
    observes: whether the cache's policy looks at attention (engine/retention.py). room: of the cache; by default all of
    it is in memory.
    """

    def __init__(self, header: Header, *, process: int, context: int, cache_type: str, chunk: int,
                 threads: int, embeddings: int = 0, drafting: bool = True, observes: bool = False,
                 room: CacheRoom | None = None) -> None:
        self._header, self._process, self._threads, self._drafting = header, process, threads, drafting
        self._embeddings = embeddings
        self._chunk, self._context = min(chunk, context), context
        config = header.config
        self._room = room or CacheRoom(config, cache_type, context, context + MORE_POSITIONS)
        self._observes = observes
        self._least_rows = max(LEAST_ROWS, self._room.parallel)
        self._tokens = _TOKEN_BYTES * context * self._room.parallel
        self._logits = 4 * config.vocab_size
        self._embedding = next((layout for layout in header.unit_layouts() if layout.name == EMBEDDING), None)
        self._streamable = header.streamable()
        in_window = {n.section for n in header.neurons} if header.config.selective else set()
        self._in_window = [layout for layout in self._streamable if layout.name in in_window]
        self._in_order = [layout for layout in self._streamable if layout not in self._in_window]
        """What is read when it is needed, and what for every pass."""
        self._deciding = {spec.name for spec in config.tensors() if spec.role in FEED_FORWARD - config.in_groups}
        self._attention = [layout for layout in self._streamable if layout.section == RESIDENT]
        split = {n.section for n in header.neurons if n.details}
        self._bases = [layout for layout in self._streamable if layout.name in split]
        self._others = [layout for layout in self._in_order
                        if layout.section != RESIDENT and layout not in self._bases]
        self._edges = (2 * ALIGNMENT * (len(self._bases) + len(self._others))
                       + 2 * TENSOR_ALIGNMENT * len(self._attention))
        """Bytes that are lost around what is pinned."""
        self._predictors = (-(-header.sections[PREDICTORS].length // ALIGNMENT) * ALIGNMENT if header.predicts else 0)
        self._weights = (header.sections[RESIDENT].length - length_of(header.unused().values()) + self._predictors
                         + length_of([*self._bases, *self._others, *self._in_window]))

    def _fixed(self, chunk: int, rows: int | None = None) -> dict[str, int]:
        rows = rows or self._least_rows
        config, embedding = self._header.config, self._header.embedding
        tile = FORMATS[embedding.format].tile_bytes(embedding.columns)
        angles = _ANGLE_BYTES * config.rotary_dim * config.angle_tables
        norms = self._weights - self._predictors - length_of(self._streamable)
        return {
            "process": self._process,
            **({"embeddings": self._embeddings} if self._embeddings else {}),
            "growth": _GROWTH + self._logits * (_LOGITS_COPIES + self._room.parallel - 1) + self._tokens
            + _THREAD_BYTES * self._threads + self._room.swap_bytes + page_table_bytes(norms + self._predictors)
            + _UNIT_BYTES * sum(s.count for s in self._streamable),
            "norms and biases": norms,
            **({"predictors": self._predictors} if self._predictors else {}),
            "key-value cache": self._room.bytes,
            **({"cache read ahead": self._room.read_ahead_bytes} if self._room.flash else {}),
            "working memory": buffer_bytes(config, self._header, chunk, self._threads, self._context, rows,
                                           observes=self._observes)
            + chunk * (tile + angles) + SLAB * tile + 2 * ALIGNMENT,
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
            budget = (whole + self._more_for(MOST_ROWS)
                      + (self._embedding_bytes(self._embedding.count) if self._embedding else 0))
        if whole <= budget:
            rows = next(rows for rows in range(self._rows(budget), self._least_rows - 1, -1)
                        if whole + self._more_for(rows) <= budget)
            everything = replace(everything, embedding=self._embedding_units(budget - whole - self._more_for(rows)))
            return self._made(budget, self._chunk, rows, everything, smallest=0, disk=None)
        disk = device()
        smallest = self.smallest(disk)
        if budget < smallest <= most:
            return self.plan(smallest, lambda: disk)
        if budget < smallest:
            raise ModelError(f"{what} of {size_text(max(budget, most))} is too small: this model needs at least "
                             f"{self.named(smallest) >> 20} MiB with these settings; a smaller context takes less, and "
                             f"with {self.named(whole) >> 20} MiB nothing is read from flash")
        chunk = self._chunk_for(budget, disk)
        rows = self._rows(budget)
        if budget < self._smallest_with(self._fixed(chunk, rows), disk):
            rows = self._least_rows
        pinned, slots, window = self._pinned(budget, self._fixed(chunk, rows), disk)
        if pinned == everything.pinned:  # fewer prompt tokens at once leave room for all
            return self._made(budget, chunk, rows, everything, smallest=0, disk=None)
        placement = Placement(pinned, 0, disk.chunk_bytes, disk.readers, slots, self.slot_bytes(disk), window)
        return self._made(budget, chunk, rows, placement, smallest=smallest, disk=disk)

    def _rows(self, budget: int) -> int:
        """Rows of logits that are computed at once, if there is room."""
        return min(max(budget // _SHARE_OF_ROWS // self._logits, self._least_rows), MOST_ROWS)

    def _more_for(self, rows: int) -> int:
        """Bytes that so many rows of logits take more than the fewest, where prompts are computed as was asked for."""
        return sum(self._fixed(self._chunk, rows).values()) - sum(self._fixed(self._chunk).values())

    def _chunk_for(self, budget: int, disk: Device) -> int:
        """How many prompt tokens to compute at once: as many as _SHARE_OF_CHUNK allows.

        Chosen in small steps, so that a larger budget never leaves noticeably less for weights.
        """
        for chunk in (self._chunk, *range((self._chunk - 1) // _CHUNK_STEP * _CHUNK_STEP, 0, -_CHUNK_STEP)):
            fixed = self._fixed(chunk)
            if fixed["working memory"] <= budget // _SHARE_OF_CHUNK and self._smallest_with(fixed, disk) <= budget:
                return chunk
        return min(_CHUNK_STEP, self._chunk)

    def _made(self, budget: int, chunk: int, rows: int, placement: Placement, *, smallest: int,
              disk: Device | None) -> Plan:
        parts = {**self._fixed(chunk, rows), "read ahead": self._ahead(disk, placement.slots) if disk else 0}
        held, window = bytes_pinned(self._streamable, placement.pinned), window_bytes(placement.window)
        parts["growth"] += page_table_bytes(held + window)
        deciding = [layout for layout in self._attention if layout.name in self._deciding]
        parts["pinned attention"] = bytes_pinned(self._attention, placement.pinned) - bytes_pinned(
            deciding, placement.pinned)
        parts["pinned gates"] = bytes_pinned(deciding, placement.pinned)
        bases = {n.section for n in self._header.neurons}
        parts["pinned base"] = bytes_pinned([s for s in self._streamable if s.name in bases], placement.pinned)
        parts["pinned details"] = bytes_pinned([s for s in self._others if s.name not in {*bases, HEAD}],
                                                placement.pinned)
        parts["pinned output head"] = bytes_pinned([s for s in self._others if s.name == HEAD], placement.pinned)
        parts["experts" if self._header.config.experts else "window of neurons"] = window
        parts["pinned embedding"] = self._embedding_bytes(placement.embedding)
        logit_rows = _LOGITS_COPIES + (budget - sum(parts.values())) // self._logits
        streamed, missed = length_of(self._streamable) - held, 0
        if placement.window:
            missed = expected_bytes(self._header, placement.window)
            streamed += missed - length_of(self._in_window)
        return Plan(budget, parts, streamed, self._weights, chunk, rows, logit_rows, smallest, placement, disk,
                    expected_hits(self._header, placement.window)
                    if placement.window and self._header.config.experts else None, missed)

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
        size = length_of(self._streamable)
        return sum(self._fixed(self._chunk).values()) + size + page_table_bytes(size) + self._edges

    def smallest(self, disk: Device) -> int:
        """The smallest budget that works, in bytes: with all streamed that can be, unless keeping it takes less."""
        return min(self._smallest_with(self._fixed(min(_CHUNK_STEP, self._chunk)), disk), self.whole)

    @staticmethod
    def named(budget: int) -> int:
        """A budget as it is told to the user: in whole MiB, with a margin for differences between processes."""
        return -(-(budget + _MARGIN) // (1 << 20)) << 20

    def _smallest_with(self, fixed: dict[str, int], disk: Device) -> int:
        window = window_bytes(least_slots(self._header)) if self._in_window else 0
        if window:
            window += page_table_bytes(window + ALIGNMENT) + ALIGNMENT
        return sum(fixed.values()) + self._ahead(disk, self.slots(disk, bases=True)) + self._edges + window

    def slot_bytes(self, disk: Device) -> int:
        """Bytes of a slot, which has room for any single read."""
        return stream.slot_bytes((s.unit_bytes for s in self._in_order), disk.chunk_bytes)

    def slots(self, disk: Device, *, bases: bool) -> int:
        """How many slots: enough for each reader to fill one while a phase of prefill (buffers.phases) uses its own, or
        each thread a segment of one token's. bases: whether base planes are streamed too.

        Everything else needs fewer: it gives each unit back before it waits for the next.
        """
        if self._in_window:
            return 2 * disk.readers + self._threads
        held = 0
        for n in self._header.neurons:
            most = max(segment_start(n.groups, last) - segment_start(n.groups, first)
                       for first, last in phases(n.groups, self._threads))
            sizes = ([n.group_bytes] if bases or not n.details else []) + ([n.detail_bytes] if n.details else [])
            if len(sizes) > 1:  # a thread holds one plane of a group while it waits for the other
                most = max(most, self._threads * -(-n.groups // SEGMENTS))
            held = max(held, sum(-(-most // stream.run_units(size, disk.chunk_bytes)) + 1 for size in sizes))
        return held + disk.readers

    def _ahead(self, disk: Device, slots: int) -> int:
        ring = stream.ring_bytes(slots, self.slot_bytes(disk))
        readers = disk.readers + (READERS if self._in_window else 0)
        return ring + self._runs_bytes(disk.chunk_bytes) + _THREAD_BYTES * readers

    def _runs_bytes(self, chunk_bytes: int) -> int:
        runs = sum(-(-s.count // stream.run_units(s.unit_bytes, chunk_bytes)) for s in self._in_order)
        return stream.RUN_BYTES * runs

    def _pinned(self, budget: int, fixed: dict[str, int],
                disk: Device) -> tuple[dict[str, int], int, dict[int, int]]:
        """How many units of each to pin, how many slots it takes to read the others in order, and the window's."""
        if self._in_window:
            return self._pinned_and_window(budget, fixed, disk)
        pinned: dict[str, int] = {}
        for bases in (False, True):
            slots = self.slots(disk, bases=bases)
            left = budget - sum(fixed.values()) - self._ahead(disk, slots) - self._edges
            pinned = self._spread_all(left - page_table_bytes(left), disk.chunk_bytes)
            if all(pinned[layout.name] == layout.count for layout in self._bases):
                break
        return {s.name: pinned[s.name] for s in self._streamable}, slots, {}

    def _pinned_and_window(self, budget: int, fixed: dict[str, int],
                           disk: Device) -> tuple[dict[str, int], int, dict[int, int]]:
        """The same of a sparse model: what every pass needs, and the window, are divided so that a token's reads take
        the least time."""
        every = {layout.name: layout.count for layout in self._streamable}
        none = dict.fromkeys((layout.name for layout in self._in_window), 0)
        found = []
        for slots in (0, self.slots(disk, bases=True)):
            left = budget - sum(fixed.values()) - self._ahead(disk, slots) - self._edges
            left -= page_table_bytes(left)
            all_in_order = left - length_of(self._in_order)
            for window in candidates(self._header, left if slots else all_in_order):
                room = left - window_bytes(window)
                if room < 0 or (not slots and room < length_of(self._in_order)):
                    continue
                if not slots and holds_all(self._header, window):
                    return every, 0, {}
                streamed = max(length_of(self._in_order) - room, 0)
                seconds = streamed / disk.bandwidth + reading_s(self._header, window, disk)
                found.append((seconds, slots, window, room))
        _, slots, window, room = min(found, key=lambda split: split[0])
        pinned = spread_in_turn([self._attention, self._others], room, disk.chunk_bytes) if slots else {}
        return every | pinned | none, slots, window

    def _spread_all(self, left: int, chunk_bytes: int) -> dict[str, int]:
        """Pin in `left` bytes, in the order of what makes the best draft."""
        head = next(layout for layout in self._others if layout.name == HEAD)
        details = [layout for layout in self._others if layout.name != HEAD]
        common, rest = cut_at(head, min(_COMMON_SLABS, head.count) if self._bases else 0)
        phases = [self._attention, [common], self._bases]
        if self._drafting and self._bases:
            less_common, rest = cut_at(rest, min(_LESS_COMMON_SLABS, rest.count))
            thirds = [cut_at(layout, layout.count * 2 // 3) for layout in details]
            phases += [[less_common], *([first] for first, _ in reversed(thirds)),
                       [*(last for _, last in thirds), rest]]
        else:
            phases.append([*details, rest])
        return dict.fromkeys((layout.name for layout in self._streamable), 0) | spread_in_turn(
            phases, left, chunk_bytes)
