"""The memory that programs work in: fixed once, before anything is computed."""

from dataclasses import dataclass

import numpy as np

from edgert.bundle import Header
from edgert.bundle.header import predictor_rank
from edgert.kernels import records
from edgert.kernels.formats import BLOCK, FORMATS, TILE, Activation
from edgert.kernels.pages import PAGE
from edgert.models.config import Config
from edgert.residency.region import Allocator, Region

from .expert_buffers import expert_places, expert_scratch

LEAST_ROWS, MOST_ROWS = 4, 17
"""Rows of logits computed at once: the most for a token and 16 drafts that follow it."""
_GROUPS_A_THREAD = 8
_PARTS_TOKENS = 8
"""Tokens at the end of a full context for which attention's splits may be shared among the threads."""


def _row_bytes(columns: int, form: Activation = Activation.FLOAT) -> int:
    return -(-columns // BLOCK) * form.block_bytes


@dataclass(frozen=True)
class Buffer:
    """A matrix in memory: row i starts at `address + i * stride`, both in bytes."""

    address: int
    stride: int


class Buffers:
    """The memory that programs work in, for `tokens` new tokens at once, `threads`, and contexts of up to `context`.

    logit_rows: how many rows of logits are computed at once.
    Each is C order, float32 where nothing else is said; rows are padded to whole cache lines.

    x          (tokens, hidden_size)                  the residual stream
    h          by form (formats.Activation):          what a norm, or attention, gives to matrices
               FLOAT      (tokens, max(hidden_size, query_size))
               QUANTIZED  (tokens, blocks, 40 bytes)
               FINE       (tokens, blocks, 80 bytes), where there are weights of 8 bits
    products   (tokens, queries + keys + values)      head by head; or hidden_size: what is added to x later; or gate,
                                                      up, and how much of them, of a gated linear unit
    glu        by form: (tokens, glu_columns)         what a gated linear unit gives to its last matrix
    parts      (tokens * heads * splits, 16 + head)   attention's splits (kernels/attention.py)
    deciding   (tokens, intermediate_size)            products of the matrix that decides, in sparse models, or a
                                                      predictor's scores
    features   (tokens, predictor_rank)               what a predictor's first matrix makes
    ahead      (1, hidden_size)                       what the next layer's predictor is asked with before its turn;
    foreseen, chosen_ahead                            its scores, and the units that they make needed
    chosen     (units,) int64                         the units of neurons that they make needed
    hidden     (tokens, blocks of one phase)          gate and up, in the form that down meets
    sums       (tiles, tokens, 16)                    down so far, over phases
    partial    (tiles, SEGMENTS, 16)                  down of one token, by segments
    logits     (logit_rows, vocab_size)
    rows       (tokens, 2) int64                      embedding rows: address of the tile, row in it
    tokens     (tokens, 8) int64                      records.Token
    selected   (logit_rows,) int64                    whose logits are wanted
    scratch    (threads, bytes)
    of experts                                        as expert_buffers.py lists them
    masses     (layers, kv heads, context)            attention paid to positions (kernels/masses.py), where a policy
                                                      of the cache observes it
    """

    def __init__(self, config: Config, header: Header, tokens: int, threads: int, context: int,
                 logit_rows: int = LEAST_ROWS, *, observes: bool = False) -> None:
        room = _Room(config, header, tokens, threads, context, logit_rows, observes)
        self.logit_rows = logit_rows
        self._region = Region(room.size, "working memory", huge=True)
        self.phases = room.phases
        self.scratch_stride = room.scratch_stride
        made = {name: Buffer(self._region.address + at, stride) for name, (at, stride) in room.places.items()}
        self.x, self.products, self.parts = (made[n] for n in ("x", "products", "parts"))
        self.h = {form: made[form.name] for form in Activation}
        self.hidden, self.partial, self.sums = (made[n] for n in ("hidden", "partial", "sums"))
        self.glu = {form: made[f"GLU_{form.name}"] for form in Activation}
        self.of_experts = made
        """Those that `expert_places` lists, where there are experts."""
        self.deciding, self.features = made["deciding"], made["features"]
        self.ahead, self.foreseen, self.chosen_ahead = made["ahead"], made["foreseen"], made["chosen_ahead"]
        self.chosen_buffer = made["chosen"]
        self.scratch = made["scratch"].address
        self.logits_buffer, self.rows_buffer, self.tokens_buffer, self.selected_buffer = (
            made[n] for n in ("logits", "rows", "tokens", "selected"))

        def view(name: str, count: int, kind: type) -> np.ndarray:
            at, stride = room.places[name]
            columns = stride // np.dtype(kind).itemsize
            return np.frombuffer(self._region.view(at, count * stride), kind).reshape(count, columns)

        self.chosen = view("chosen", room.units, np.int64)[:, 0]
        self.rows = view("rows", tokens, np.int64)
        self.tokens = view("tokens", tokens, np.int64)
        self.selected = view("selected", logit_rows, np.int64)[:, 0]
        self.logits = view("logits", logit_rows, np.float32)[:, :config.vocab_size]
        heads = config.num_hidden_layers * config.num_key_value_heads
        self.masses = view("masses", heads, np.float32).reshape(
            config.num_hidden_layers, config.num_key_value_heads, -1)

    def touch(self) -> None:
        """Make all of it resident now."""
        self._region.touch()

    def close(self) -> None:
        del self.chosen, self.rows, self.tokens, self.selected, self.logits, self.masses
        self._region.close()


class _Room:
    """The layout of the buffers: offset and stride of each, and the size of all."""

    def __init__(self, config: Config, header: Header, tokens: int, threads: int, context: int,
                 logit_rows: int, observes: bool) -> None:
        allocator = Allocator()

        def rows(count: int, row_bytes: int) -> tuple[int, int]:
            stride = -(-row_bytes // 64) * 64
            return allocator.reserve(count * stride), stride

        wide = max(config.hidden_size, config.query_size)
        qkv = sum(-(-size // TILE) * TILE for size in (config.query_size, *[config.key_value_size] * 2))
        # Of a gated linear unit up is read in whole blocks, and so what is behind it.
        glu = 2 * config.glu_columns + BLOCK + TILE if config.glu_columns else 0
        tiles = -(-config.hidden_size // TILE)
        groups = -(-config.intermediate_size // BLOCK)
        self.phases, self.units = phases(groups, threads), max((n.groups for n in header.neurons), default=0)
        most = max(segment_start(groups, last) - segment_start(groups, first) for first, last in self.phases)
        formats = [FORMATS[name] for n in header.neurons for name in (n.gate_up, n.down)]
        formats += [FORMATS[t.format] for t in header.tensors.values() if t.format in FORMATS]
        rows_of_h = max(tokens, logit_rows)
        fine_rows = rows_of_h if any(form.activation is Activation.FINE for form in formats) else 0
        parts = records.attention_partial_bytes(
            config.num_attention_heads, config.head_dim, min(tokens, _PARTS_TOKENS), context)
        self.places = {
            "x": rows(tokens, _row_bytes(config.hidden_size)),
            "FLOAT": rows(rows_of_h, _row_bytes(wide)),
            "QUANTIZED": rows(rows_of_h, _row_bytes(wide, Activation.QUANTIZED)),
            "FINE": rows(fine_rows, _row_bytes(wide, Activation.FINE)),
            "products": rows(tokens, 4 * max(qkv, TILE * -(-config.hidden_size // TILE), glu)),
            **{f"GLU_{form.name}": rows(tokens, _row_bytes(config.glu_columns, form)) for form in Activation},
            "parts": (allocator.reserve(parts), parts),
            "deciding": rows(tokens if config.sparse else 0, _row_bytes(BLOCK * groups)),
            "features": rows(tokens if header.predicts else 0, _row_bytes(predictor_rank(config))),
            "ahead": rows(int(header.predicts), _row_bytes(config.hidden_size)),
            "foreseen": rows(int(header.predicts), _row_bytes(BLOCK * groups)),
            "chosen_ahead": (allocator.reserve(8 * self.units if header.predicts else 0), 8),
            "chosen": (allocator.reserve(8 * self.units), 8),
            "hidden": rows(0 if config.selective else tokens, max(
                (_row_bytes(BLOCK * most, FORMATS[n.down].activation) for n in header.neurons), default=0)),
            "sums": (allocator.reserve(records.down_bytes(tiles, 0 if config.selective else tokens)), 0),
            "partial": (allocator.reserve(records.partial_bytes(tiles)), 0),
            "logits": rows(logit_rows, 4 * -(-config.vocab_size // TILE) * TILE),
            "rows": (allocator.reserve(16 * tokens), 16),
            "tokens": (allocator.reserve(records.TOKEN_BYTES * tokens), records.TOKEN_BYTES),
            "masses": rows(config.num_hidden_layers * config.num_key_value_heads,
                           4 * PAGE * -(-context // PAGE) if observes else 0),
            "selected": (allocator.reserve(8 * logit_rows), 8),
            **expert_places(config, header, tokens, rows),
        }
        ups, downs = ([FORMATS[getattr(n, part)] for n in header.neurons] for part in ("gate_up", "down"))
        tile_bytes = max((form.tile_bytes(config.hidden_size) for form in ups), default=0)
        down_block = max((form.block_bytes for form in downs), default=0)
        self.scratch_stride = -(-max(
            records.up_scratch_bytes(tile_bytes), records.neurons_scratch_bytes(tiles, tile_bytes, down_block),
            records.down_scratch_bytes(most, down_block),
            records.sparse_scratch_bytes(-(-config.hidden_size // BLOCK)) if config.sparse else 0,
            expert_scratch(config, header),
            records.attention_scratch_bytes(config.head_dim, config.num_attention_heads // config.num_key_value_heads),
        ) // 4096) * 4096
        self.places["scratch"] = (allocator.reserve(threads * self.scratch_stride, 4096), self.scratch_stride)
        self.size = allocator.size


def buffer_bytes(config: Config, header: Header, tokens: int, threads: int, context: int, logit_rows: int, *,
                 observes: bool = False) -> int:
    """What `Buffers` will take."""
    return _Room(config, header, tokens, threads, context, logit_rows, observes).size


def segment_start(groups: int, segment: int) -> int:
    """The first group of a segment: so the kernels divide the groups of a layer."""
    return segment * groups // records.SEGMENTS


def phases(groups: int, threads: int) -> list[tuple[int, int]]:
    """The phases in which prefill goes through a layer's segments: (first, last) of each.

    A phase computes gate and up of its groups, then down: as many segments as give every thread some groups to do,
    and no more, since what has been read stays in memory until its phase is over.
    """
    step = min(-(-_GROUPS_A_THREAD * threads * records.SEGMENTS // groups), records.SEGMENTS)
    return [(first, min(first + step, records.SEGMENTS)) for first in range(0, records.SEGMENTS, step)]
