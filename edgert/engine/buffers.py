"""The memory that programs work in: fixed once, before anything is computed."""

from dataclasses import dataclass

import numpy as np

from edgert.bundle import Header
from edgert.kernels import records
from edgert.kernels.formats import BLOCK, FLOAT_BLOCK, FORMATS, QUANTIZED_BLOCK, TILE
from edgert.models.llama import Config
from edgert.residency.region import Allocator, Region

LOGIT_ROWS = 4
"""How many tokens' logits are computed at once."""

def _row_bytes(columns: int, *, integer: bool = False) -> int:
    return -(-columns // BLOCK) * (QUANTIZED_BLOCK if integer else FLOAT_BLOCK)


_GROUPS_A_THREAD = 8


@dataclass(frozen=True)
class Buffer:
    """A matrix in memory: row i starts at `address + i * stride`, both in bytes."""

    address: int
    stride: int


class Buffers:
    """The memory that programs work in, for at most `tokens` new tokens at once and `threads` threads.

    All buffers are one allocation. Each is row-major; its rows are `stride` bytes apart, a multiple of 64, and padded
    to whole blocks of 32 elements (`logits` to whole tiles of 16).

        x            (tokens, hidden_size)                    float32: the residual stream
        h            (tokens, max(hidden_size, query_size))   float32: the last norm's, or attention's, result
        h_quantized  (tokens, as many / 32)                   h in quantized blocks of 80 bytes (kernels/activation.py)
        qkv          (tokens, query_size + 2 key_value_size)  float32: queries, keys, values; in each, head by head
        hidden       (tokens, 32 * groups of a phase)         silu(gate x) * (up x): float32 or quantized blocks, as
                                                              the layer's down projection wants it
        sums         (hidden_size / 16, tokens, 2, 16)        float32: sums of the down projection so far
        partial      (SEGMENTS, hidden_size / 16, 2, 16)      float32: the same of one token, for each segment
        logits       (LOGIT_ROWS, vocab_size)                 float32
        rows         (tokens, 2)                              int64: address of an embedding's tile, row in the tile
        selected     (LOGIT_ROWS,)                            int64: the new tokens whose logits are computed
        scratch      (threads, scratch_stride)                bytes: each thread's own

    h and h_quantized have at least LOGIT_ROWS rows: the output head uses them too. `rows`, `selected` and `logits` are
    NumPy views of their buffers. phases: as `phases` gives them.
    """

    def __init__(self, config: Config, header: Header, tokens: int, threads: int) -> None:
        room = _Room(config, header, tokens, threads)
        self._region = Region(room.size, "working memory", huge=True)
        self.phases = room.phases
        self.scratch_stride = room.scratch_stride
        made = {name: Buffer(self._region.address + at, stride) for name, (at, stride) in room.places.items()}
        self.x, self.h, self.h_quantized, self.qkv = (made[n] for n in ("x", "h", "h_quantized", "qkv"))
        self.hidden, self.partial, self.sums = (made[n] for n in ("hidden", "partial", "sums"))
        self.scratch = made["scratch"].address
        self.logits_buffer, self.rows_buffer, self.selected_buffer = (made[n] for n in ("logits", "rows", "selected"))

        def view(name: str, count: int, kind: type) -> np.ndarray:
            at, stride = room.places[name]
            return np.frombuffer(self._region.view(at, count * stride), kind).reshape(count, -1)

        self.rows = view("rows", tokens, np.int64)
        self.selected = view("selected", LOGIT_ROWS, np.int64)[:, 0]
        self.logits = view("logits", LOGIT_ROWS, np.float32)[:, :config.vocab_size]

    def touch(self) -> None:
        """Make all of it resident now."""
        self._region.touch()

    def close(self) -> None:
        del self.rows, self.selected, self.logits
        self._region.close()


class _Room:
    """The layout of the buffers: offset and stride of each, and the size of all."""

    def __init__(self, config: Config, header: Header, tokens: int, threads: int) -> None:
        allocator = Allocator()

        def rows(count: int, row_bytes: int) -> tuple[int, int]:
            stride = -(-row_bytes // 64) * 64
            return allocator.reserve(count * stride), stride

        wide = max(config.hidden_size, config.query_size)
        qkv = sum(-(-size // TILE) * TILE for size in (config.query_size, *[config.key_value_size] * 2))
        tiles = -(-config.hidden_size // TILE)
        groups = -(-config.intermediate_size // BLOCK)
        self.phases = phases(groups, threads)
        most = max(segment_start(groups, last) - segment_start(groups, first) for first, last in self.phases)
        self.places = {
            "x": rows(tokens, _row_bytes(config.hidden_size)),
            "h": rows(max(tokens, LOGIT_ROWS), _row_bytes(wide)),
            "h_quantized": rows(max(tokens, LOGIT_ROWS), _row_bytes(wide, integer=True)),
            "qkv": rows(tokens, 4 * qkv),
            "hidden": rows(tokens, _row_bytes(BLOCK * most, integer=all(
                FORMATS[n.down].integer for n in header.neurons))),
            "sums": (allocator.reserve(records.down_bytes(tiles, tokens)), 0),
            "partial": rows(records.SEGMENTS, records.one_token_bytes(tiles)),
            "logits": rows(LOGIT_ROWS, 4 * -(-config.vocab_size // TILE) * TILE),
            "rows": (allocator.reserve(16 * tokens), 16),
            "selected": (allocator.reserve(8 * LOGIT_ROWS), 8),
        }
        self.scratch_stride = -(-max(
            records.UP_SCRATCH_BYTES, records.attention_scratch_bytes(config.head_dim)) // 4096) * 4096
        self.places["scratch"] = (allocator.reserve(threads * self.scratch_stride, 4096), self.scratch_stride)
        self.size = allocator.size


def buffer_bytes(config: Config, header: Header, tokens: int, threads: int) -> int:
    """Bytes that `Buffers` will take."""
    return _Room(config, header, tokens, threads).size


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
