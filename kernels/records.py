"""Operations as data: what a program is made of, and what the threads that run it share.

A program is an array of records, 16 int64 each: the operation's number, then its arguments in the order of the classes
here. Addresses are plain integers; strides and offsets are in bytes. The kernels read the same layouts, by `offsets`.
This module imports neither the kernels nor Numba: it is all that running needs to know of them.
"""

from typing import Any, NamedTuple

from .formats import TILE

RECORD = 16
"""int64 in a record."""
RECORD_BYTES = 8 * RECORD


def offsets(record: type[Any]) -> tuple[int, ...]:
    """Where each argument stands in a record, in bytes."""
    return tuple(8 * (i + 1) for i in range(len(record._fields)))


EMBEDDING, UP, DOWN = 0, 8, 16
"""One operation for each weight format: the format's code is added."""
NORM, QUANTIZE = 32, 33
NEURONS, GATHER = 38, 39
"""The feed-forward part for a single token: UP and DOWN with every group read once, from end to end."""
SLABS, RELEASE = 40, 41
"""The output head; and giving back the room of neuron groups that UP and DOWN are done with."""
LINEAR = 42
"""Matrices that share nothing but the moment: a record for each, the first says how many follow (`joined`)."""
ROPE, ATTENTION = 34, 36
"""One operation for each element type of the cache: 0 for float16, 1 for float32 is added."""


class Embedding(NamedTuple):
    """Rows of the embedding matrix, as float32."""

    rows: int
    """Two int64 a token: the address of its tile, and its row in the tile."""
    blocks: int
    out: int
    out_stride: int


class Linear(NamedTuple):
    """y = W x (+ bias) (+ y)."""

    weights: int
    tiles: int
    form: int
    """The format's code."""
    blocks: int
    x: int
    x_stride: int
    y: int
    y_stride: int
    bias: int
    """Address of float32, 16 a tile; or 0."""
    accumulate: int
    """1 to add to what y holds."""
    joined: int
    """How many of the records that follow, LINEAR too, are done together with this one."""


class Slabs(NamedTuple):
    """y = W x for the selected rows, by slabs of tiles (formats.SLAB)."""

    table: int
    """int64 a slab: its address; 0 while it is still being read."""
    counters: int
    """int64 a slab: the address of the counter to lower when done with it, or 0; or 0 where all stay."""
    slabs: int
    tiles: int
    form: int
    """The format's code."""
    blocks: int
    x: int
    x_stride: int
    y: int
    y_stride: int


class Release(NamedTuple):
    """Give back the room of groups."""

    table: int
    counters: int
    groups: int


class Up(NamedTuple):
    """hidden = silu(gate x) * (up x), by groups of 32 neurons."""

    table: int
    """int64 a group: its address; 0 while it is still being read."""
    groups: int
    blocks: int
    x: int
    x_stride: int
    hidden: int
    hidden_stride: int
    as_float: int
    """1 to write float32, 0 to quantize."""
    scratch: int
    scratch_stride: int


class Down(NamedTuple):
    """y += down hidden, some segments of it: the first set their sums to zero, the last add them to y."""

    table: int
    groups: int
    """Of the whole layer, as is `table`."""
    first: int
    last: int
    """Segments."""
    sums: int
    """Sums of the segments so far, two vectors a tile and token."""
    offset: int
    """Where the down blocks begin in a group."""
    headers: int
    """The down tiles' headers, one after another."""
    tiles: int
    hidden: int
    hidden_stride: int
    y: int
    y_stride: int


class OneToken(NamedTuple):
    """What NEURONS and GATHER do for one token: y += down(silu(gate x) * up x), in SEGMENTS parts, then their sum."""

    table: int
    groups: int
    gate_up: int
    """The format's code."""
    blocks: int
    x: int
    down: int
    """The format's code."""
    offset: int
    headers: int
    tiles: int
    y: int
    partial: int
    """Room for the parts' sums: SEGMENTS * one_token_bytes(tiles)."""
    scratch: int
    scratch_stride: int
    counters: int
    """As in Slabs."""


class Norm(NamedTuple):
    """x / sqrt(mean(x**2) + epsilon) * weight."""

    x: int
    x_stride: int
    weight: int
    columns: int
    blocks: int
    epsilon: int
    """The bits of a float32."""
    out: int
    """float32, or 0."""
    out_stride: int
    out_quantized: int
    """Quantized blocks, or 0."""
    out_quantized_stride: int
    of_selected: int


class Quantize(NamedTuple):
    """float32 rows to quantized blocks."""

    x: int
    x_stride: int
    blocks: int
    out: int
    out_stride: int


class Rope(NamedTuple):
    """Rotates queries and keys, and puts keys and values into the cache."""

    qkv: int
    qkv_stride: int
    heads: int
    kv_heads: int
    head_dim: int
    layer: int
    interleaved: int


class Attention(NamedTuple):
    """softmax(q k * scale) v."""

    qkv: int
    qkv_stride: int
    heads: int
    kv_heads: int
    head_dim: int
    layer: int
    out: int
    out_stride: int
    scratch: int
    scratch_stride: int
    scale: int
    """The bits of a float32."""


class State(NamedTuple):
    """What the threads share, at the start of an array of STATE_BYTES bytes."""

    threads: int
    tokens: int
    position: int
    """Of the first new token."""
    selected: int
    """How many rows the output head computes."""
    selected_rows: int
    """Address of their indices, int64."""
    cache: int
    cache_layer_bytes: int
    cache_head_bytes: int
    """A head's keys, or values, in a layer."""
    rope: int
    """head_dim / 2 cosines and as many sines for each position, float32."""
    yield_processor: int
    """Address of a C function that lets another thread run."""
    signal: int
    wait: int
    """Addresses of C functions that post a semaphore, and wait for one."""
    semaphores: int
    """Addresses of the helpers' semaphores, one int64 each."""
    program: int
    operations: int
    """The program that the helpers join in; operations below 0 end them."""
    error: int
    """Set to 1 by values that are not finite."""
    stop: int
    """Set to 1 by whoever reads weights when they cannot be had, and to 2 when they do not come: the run ends."""
    stopped: int
    """`stop` or what `cancelled` points to, as they were at the last barrier: the same for all threads."""
    sleep: int
    """Address of a C function that waits so many microseconds."""
    clock: int
    clock_id: int
    """Address of clock_gettime, and its first argument."""
    freed: int
    """Semaphore raised when room was given back."""
    patience: int
    """How many times to sleep for weights that do not come before giving up."""
    trace: int
    """Where to write the time after each operation, 16 bytes each as clock_gettime does, or 0."""
    cancelled: int
    """Address of an int64 that whoever wants the run's result no more sets to CANCELLED: the run ends."""


CANCELLED = 4
WAITING, GENERATION, NEXT, RUNS, WAITED, STATE_BYTES = 256, 320, 384, 448, 512, 576
"""On cache lines of their own: threads at the barrier, barriers passed, the next work item, runs begun, nanoseconds
that thread 0 waited for weights (and room for two times)."""

SEGMENTS = 16
"""Parts into which a layer's groups are cut, always the same, whoever computes them: each is summed alone, then the
sums are added in order. So the result depends neither on the threads nor on how many tokens come at once."""
TOKENS_AT_ONCE = 32
"""Tokens for which gate and up are kept as float32 before they become one activation."""
UP_SCRATCH_BYTES = TOKENS_AT_ONCE * 4 * TILE * 4
POSITIONS = 16
"""Positions in a tile of keys."""


def down_bytes(tiles: int, tokens: int) -> int:
    """Room for the sums of the down projection: two vectors a tile and token."""
    return 128 * tiles * tokens


def one_token_bytes(tiles: int) -> int:
    """Room for the sums of one part: two vectors a tile."""
    return 128 * tiles


def padded_head_dim(head_dim: int) -> int:
    """Components of a head in the cache."""
    return -(-head_dim // 16) * 16


def attention_scratch_bytes(head_dim: int) -> int:
    """Scratch that a thread needs for attention."""
    return 64 + 4 * padded_head_dim(head_dim)
