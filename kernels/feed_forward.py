"""The feed-forward part, from row-column bundles of 32 neurons ("LLM in a flash", Alizadeh et al. 2023).

A group of 32 neurons is, at one address: 2 tiles of gate rows (unless it has no gate), 2 tiles of up rows (formats.py),
then for every 16 rows of the result one block of the down projection whose 32 columns are the group's neurons. With a
gate it is a gated linear unit (Shazeer 2020, "GLU Variants Improve Transformer"). The headers of the down blocks' rows,
where their format has them, stand apart: every group shares them. Where a group comes from does not matter: its address
is looked up in a table; one that is ABSENT adds nothing. A group may be in two places, its planes (groups.py): then it
is put together where it is needed, a tile or a block at a time (planes.py).
"""

from typing import Any

from numba import types

from .activation import quantize_pair
from .block_products import STEPS, no_sums
from .block_sparse import block_sparse_segments, room_of
from .decorators import inlined, kernel
from .dispatch import by_format, by_number, in_turn
from .formats import BLOCK, BLOCK_SPARSE, FORMATS, QUANTIZED_BLOCK, TILE, Activation
from .functions import clamped, clamped_up, gelu, gelu_tanh, relu, relu2, silu
from .groups import row_tiles_of
from .linear import tile_bytes_of, tile_of
from .planes import base_bytes_of, detail_bytes_of, whole_blocks, whole_tile
from .records import ABSENT, DOWN, HIDDEN_ACTS, RELEASE, SEGMENTS, STATE, TOKENS_AT_ONCE, UP, UP_ROWS, WHOLE
from .simd.arithmetic import add, mul, zero_f32
from .simd.memory import load_f32x16, load_i64, store_f32x16, store_i64
from .simd.rows import AT, Row, for_rows
from .simd.vector import f32x16
from .state import arrived, release, share, take

_GATED = row_tiles_of(gated=True)
_ROW_BYTES = _GATED * TILE * 4
_FUNCTIONS = {"silu": silu, "relu": relu, "relu2": relu2, "gelu_tanh": gelu_tanh, "gelu": gelu,
              "clamped": clamped}
_CLAMPED = HIDDEN_ACTS.index("clamped")
_activated = by_number({HIDDEN_ACTS.index(name): function for name, function in _FUNCTIONS.items()})
_ACTIVATION_BLOCK = tuple(form.activation.block_bytes for form in FORMATS.values())
_QUANTIZED, _FINE = (tuple(int(form.activation == kind) for form in FORMATS.values())
                     for kind in (Activation.QUANTIZED, Activation.FINE))


@kernel
def activation_block_of(form):
    """Bytes of a block of the activations that this format meets."""
    return QUANTIZED_BLOCK if room_of(form) else _ACTIVATION_BLOCK[form]


@kernel
def gated(activation, gate, up):
    """act(gate) * up of 16 neurons."""
    return mul(_activated(activation, gate), clamped_up(up) if activation == _CLAMPED else up)


@kernel
def hidden_block(row, row_tiles, activation, out, down, error):
    """act(gate) * up of 32 neurons, or act(up), to one block in the form that `down`, a format's code, meets.

    row: float32, 32 of gate and 32 of up, or 32 of up. A value that is not finite sets the int64 at `error` to 1.
    """
    if row_tiles == _GATED:
        low = gated(activation, load_f32x16(row), load_f32x16(row + 128))
        high = gated(activation, load_f32x16(row + 64), load_f32x16(row + 192))
    else:
        low, high = _activated(activation, load_f32x16(row)), _activated(activation, load_f32x16(row + 64))
    if room_of(down) or _QUANTIZED[down]:
        quantize_pair(low, high, out, 0, error)
    elif _FINE[down]:
        quantize_pair(low, high, 0, out, error)
    else:
        store_f32x16(out, low)
        store_f32x16(out + 64, high)


@kernel
def _up_group(op, w, detail, group, first, count, scratch, error):
    """One group for `count` tokens from `first` on. detail: where its detail plane is, or WHOLE."""
    form, blocks, down = load_i64(op + UP.form), load_i64(op + UP.blocks), load_i64(op + UP.down)
    x_stride, hidden_stride = load_i64(op + UP.x_stride), load_i64(op + UP.hidden_stride)
    activation, row_tiles, bias = load_i64(op + UP.activation), load_i64(op + UP.row_tiles), load_i64(op + UP.bias)
    tile_bytes = tile_bytes_of(form, blocks) if detail == WHOLE else base_bytes_of(form, blocks)
    detail_bytes = detail_bytes_of(form, blocks)
    for i in range(row_tiles):
        tile = w + i * tile_bytes
        if detail != WHOLE:
            tile = whole_tile(form, tile, detail + i * detail_bytes, blocks, scratch + UP_ROWS)
        tile_of(form, tile, blocks, load_i64(op + UP.x) + first * x_stride, x_stride, count, scratch + i * 64,
                _ROW_BYTES, bias + (group * row_tiles + i) * 64 if bias else 0, 0)
    out = load_i64(op + UP.hidden) + group * activation_block_of(down) + first * hidden_stride
    for token in range(count):
        hidden_block(scratch + token * _ROW_BYTES, row_tiles, activation, out + token * hidden_stride, down, error)


@kernel
def up(op, state, thread):
    """act(gate x) * (up x), or act(up x + bias), in the form that the down projection meets."""
    table, details, groups = load_i64(op + UP.table), load_i64(op + UP.details), load_i64(op + UP.groups)
    scratch = load_i64(op + UP.scratch) + thread * load_i64(op + UP.scratch_stride)
    tokens = load_i64(state + STATE.tokens)
    chunk = min(share(state, groups, 3), 4)
    first = take(state, chunk)
    while first < groups:
        last = min(first + chunk, groups)
        for group in range(first, last):
            if not arrived(state, thread, table, group):
                return
            if details and not arrived(state, thread, details, group):
                return
        for token in range(0, tokens, TOKENS_AT_ONCE):
            for group in range(first, last):
                w = load_i64(table + 8 * group)
                if w != ABSENT:
                    detail = load_i64(details + 8 * group) if details else WHOLE
                    _up_group(op, w, detail, group, token, min(tokens - token, TOKENS_AT_ONCE), scratch,
                              state + STATE.error)
        first = take(state, chunk)


def _segments_kernel(name: str) -> Any:
    """A kernel that adds some segments of one tile to its sums, for weight format `name`.

    (table, groups, first, last, offset, header, hidden, hidden_stride, tokens, sums): sums: 16 float32 a token.
    """
    steps, block_bytes = STEPS[name], FORMATS[name].activation.block_bytes
    scales = steps.scales

    def add_to(b, scale, minimum, sums, a, m):
        value = steps.finish(b, scale, minimum, a, m)
        store_f32x16.emit(b, sums, add.emit(b, load_f32x16.emit(b, sums), value))

    def of(count: int) -> Any:
        zeros, into = no_sums(count), steps.into(count)
        add_rows = for_rows(add_to, count, types.void, f32x16, f32x16, AT, Row(f32x16), Row(f32x16))

        @inlined
        def some(token, table, groups, first, last, offset, header, hidden, hidden_stride, tokens, sums):
            scale, minimum = scales(header)
            while token + count <= tokens:
                x = hidden + token * hidden_stride
                for segment in range(first, last):
                    a, m = zeros(), zeros()
                    for group in range(segment * groups // SEGMENTS, (segment + 1) * groups // SEGMENTS):
                        w = load_i64(table + 8 * group)
                        if w != ABSENT:
                            a, m = into(w + offset, x + group * block_bytes, hidden_stride, a, m)
                    add_rows(scale, minimum, sums + token * 64, 64, a, m)
                token += count
            return token

        return some

    every = in_turn([of(count) for count in steps.tokens])

    @kernel
    def segments(table, groups, first, last, offset, header, hidden, hidden_stride, tokens, sums):
        every(0, table, groups, first, last, offset, header, hidden, hidden_stride, tokens, sums)

    return segments


segments_of = by_format({name: _segments_kernel(name) for name in FORMATS})
_HEADER_BYTES = tuple(form.header_bytes for form in FORMATS.values())
_SPARSE_HEADER = BLOCK_SPARSE.header_bytes
_BLOCK_BYTES = tuple(form.block_bytes for form in FORMATS.values())
_BASE_BYTES = tuple(form.base_bytes for form in FORMATS.values())
_DETAIL_BYTES = tuple(form.detail_bytes for form in FORMATS.values())


@kernel
def _put_together(op, tile, first, last, room):
    """Where groups first to last have their blocks of a tile, as a table in `room`; blocks in two places are put
    together behind it. The address of what would be the entry of group 0."""
    form, gate_up, gate_up_blocks = (load_i64(op + DOWN.form), load_i64(op + DOWN.gate_up),
                                     load_i64(op + DOWN.blocks))
    table, details, row_tiles = (load_i64(op + DOWN.table), load_i64(op + DOWN.details),
                                 load_i64(op + DOWN.row_tiles))
    whole = row_tiles * tile_bytes_of(gate_up, gate_up_blocks)
    base = row_tiles * base_bytes_of(gate_up, gate_up_blocks)
    detail = row_tiles * detail_bytes_of(gate_up, gate_up_blocks)
    if not room_of(form):
        whole += tile * _BLOCK_BYTES[form]
        base += tile * _BASE_BYTES[form]
        detail += tile * _DETAIL_BYTES[form]
    at = room + ((last - first) * 8 + 63) // 64 * 64
    for group in range(first, last):
        w, d = load_i64(table + 8 * group), load_i64(details + 8 * group)
        if w != ABSENT:
            if d == WHOLE:
                w += whole
            else:
                w = whole_blocks(form, w + base, d + detail, 1, at)
                if not room_of(form):
                    at += _BLOCK_BYTES[form]
        store_i64(room + 8 * (group - first), w)
    return room - 8 * first


@kernel
def down(op, state, thread):
    """y += down h (+ bias), or y is that alone; some segments of it."""
    form, table, groups = load_i64(op + DOWN.form), load_i64(op + DOWN.table), load_i64(op + DOWN.groups)
    headers, tiles, details = load_i64(op + DOWN.headers), load_i64(op + DOWN.tiles), load_i64(op + DOWN.details)
    room = load_i64(op + DOWN.scratch) + thread * load_i64(op + DOWN.scratch_stride)
    hidden, hidden_stride = load_i64(op + DOWN.hidden), load_i64(op + DOWN.hidden_stride)
    y, y_stride = load_i64(op + DOWN.y), load_i64(op + DOWN.y_stride)
    first_segment, last_segment = load_i64(op + DOWN.first), load_i64(op + DOWN.last)
    tokens, bias, fresh = load_i64(state + STATE.tokens), load_i64(op + DOWN.bias), load_i64(op + DOWN.fresh)
    offset = load_i64(op + DOWN.row_tiles) * tile_bytes_of(load_i64(op + DOWN.gate_up), load_i64(op + DOWN.blocks))
    first_group, last_group = first_segment * groups // SEGMENTS, last_segment * groups // SEGMENTS
    chunk = max(min(share(state, tiles, 4), 16), 1)
    first = take(state, chunk)
    while first < tiles:
        for i in range(first, min(first + chunk, tiles)):
            sums = load_i64(op + DOWN.sums) + i * tokens * 64
            if first_segment == 0:
                for at in range(sums, sums + tokens * 64, 64):
                    store_f32x16(at, zero_f32())
            blocks, at = table, offset if room_of(form) else offset + i * _BLOCK_BYTES[form]
            if details:
                blocks, at = _put_together(op, i, first_group, last_group, room), 0
            if room_of(form):
                block_sparse_segments(form, blocks, groups, first_segment, last_segment, at, i, tiles,
                                      headers + i * _SPARSE_HEADER, hidden, hidden_stride, tokens, sums)
            else:
                segments_of(form, blocks, groups, first_segment, last_segment, at, headers + i * _HEADER_BYTES[form],
                            hidden, hidden_stride, tokens, sums)
            if last_segment == SEGMENTS:
                for token in range(tokens):
                    out, total = y + token * y_stride + i * 64, load_f32x16(sums + token * 64)
                    if bias:
                        total = add(total, load_f32x16(bias + i * 64))
                    store_f32x16(out, total if fresh else add(load_f32x16(out), total))
        first = take(state, chunk)


@kernel
def release_groups(op, state):
    """Give back the room of the groups that UP and DOWN are done with."""
    table, counters = load_i64(op + RELEASE.table), load_i64(op + RELEASE.counters)
    groups = load_i64(op + RELEASE.groups)
    group = take(state, 1)
    while group < groups:
        release(state, table, counters, group)
        group = take(state, 1)


assert BLOCK == 2 * TILE
