"""Operations as data: what a program is made of, and what the threads that run it share.

A program is an array of records, RECORD int64 each: the operation's `Code`, then its arguments in the order of the
classes here. Addresses are plain integers; strides and offsets are in bytes; matrices go by their format's code
(formats.py).
Kernels read the same layouts: below each class stands an instance of it that holds, instead of values, where each
argument is in a record, so that `load_i64(op + LINEAR.x)` reads the argument `x` of a `Linear`.

This module imports neither the kernels nor Numba: it is all that running needs to know of them.
"""

from enum import IntEnum
from typing import NamedTuple, TypeVar

from .formats import TILE
from .pages import PAGE, padded_head_dim

RECORD = 26
"""int64 in a record."""
RECORD_BYTES = 8 * RECORD

WAIT, ABSENT, WHOLE = 0, -1, -2
"""What stands in a table of addresses for weights that are being read, and for weights that take no part. In a table of
groups' detail planes: ABSENT for a group of which only the base takes part; WHOLE for one that stands in memory as
whole blocks, where the other table says."""

_Record = TypeVar("_Record", bound=NamedTuple)


class Code(IntEnum):
    """The operations."""

    EMBEDDING = 0
    LINEAR = 1
    """Matrices that share nothing but the moment: a record for each, the first says how many follow (`joined`)."""
    NORM = 2
    QUANTIZE = 3
    ROPE = 4
    ATTENTION = 5
    COMBINE = 6
    """What ATTENTION left in parts becomes one; its record again."""
    UP = 7
    DOWN = 8
    NEURONS = 9
    """The feed-forward part for a single token: UP and DOWN with every group read once, from end to end."""
    GATHER = 10
    """The sums of NEURONS' segments become one; its record again."""
    RELEASE = 11
    JOIN = 12
    """Groups become whole: done while weights are loaded."""
    LAYER_NORM = 13
    LEARNED_POSITIONS = 14
    CHOOSE = 15
    """Sparse models: which units of neurons the new tokens need."""
    ASK = 16
    """Those of them that are not in memory are read; CHOOSE's record again."""
    SPARSE_ONE = 17
    """Of sparse models, the rest of the feed-forward part for a single token."""
    SPARSE_GATHER = 18
    """The sums of SPARSE_ONE's segments become one; its record again."""
    SPARSE_UP = 19
    """The same for many tokens: SPARSE_UP, then SPARSE_DOWN with the same record."""
    SPARSE_DOWN = 20
    MASSES = 21
    """How much attention the new tokens pay to each position."""
    HEAD_NORMS = 22
    """Of queries and keys, before they are rotated."""
    ADD = 23
    """What a part of a layer gives to the residual stream, as such or normalised."""
    SCALE = 24
    """Logits times a number, and their cap."""
    ROUTE = 25
    """Mixtures of experts (expert_records.py): which experts each token has."""
    DISPATCH = 26
    """Which tokens each expert has; experts that are not in memory are read."""
    EXPERTS = 27
    """What experts make of their tokens."""
    EXPERT_SUMS = 28
    """What a token's experts made of it becomes one."""
    GLU = 29
    """A gated linear unit whose matrices stand for themselves: what is between them."""
    READ = 30
    """Of a file: for those who read weights when they are needed."""


def offsets(record: type[_Record], first: int = 1) -> _Record:
    """Where each argument stands in a record, in bytes; argument 0 is int64 number `first`."""
    return record._make(8 * (i + first) for i in range(len(record._fields)))


class Embedding(NamedTuple):
    """Rows of the embedding matrix, as float32."""

    form: int
    rows: int
    """Two int64 a token: the address of its tile, and its row in the tile."""
    blocks: int
    out: int
    """float32, a row for each token."""
    out_stride: int
    scale: int
    """The bits of a float32 that rows are multiplied by."""


EMBEDDING = offsets(Embedding)


class Linear(NamedTuple):
    """y = W x (+ bias) (+ y). Tables and counters go by slabs of SLAB tiles."""

    table: int
    """int64 a slab: its address, or WAIT."""
    counters: int
    """int64 a slab: the address of the counter to lower when done with it, or 0; or 0 where all stay."""
    tiles: int
    form: int
    blocks: int
    x: int
    """A row for each token, in the form that the weights meet (Format.activation)."""
    x_stride: int
    y: int
    """float32, a row for each token, 16 a tile."""
    y_stride: int
    bias: int
    """float32, 16 a tile; or 0."""
    accumulate: int
    """1 to add to what y holds."""
    of_selected: int
    """1 where x and y have rows for the tokens whose logits are wanted, 0 for all new tokens."""
    joined: int
    """How many of the records that follow, LINEAR too, are done together with this one."""


LINEAR = offsets(Linear)


class Release(NamedTuple):
    """Give back the room of neuron groups that UP and DOWN are done with."""

    table: int
    counters: int
    groups: int


RELEASE = offsets(Release)


class ReadPieces(NamedTuple):
    """Pieces of a file into memory; by a team of one thread."""

    preadv: int
    """The C function's address."""
    file: int
    """Its descriptor."""
    runs: int
    """Four int64 for each run of neighbours in the file: where it is, address and number of its pieces (struct iovec),
    and what preadv returned."""
    number: int
    """Of runs."""


READ = offsets(ReadPieces)


class Join(NamedTuple):
    """Whole groups of their planes (groups.py)."""

    groups: int
    gate_up: int
    """A format."""
    blocks: int
    down: int
    """A format."""
    tiles: int
    """Of the down projection."""
    base: int
    base_stride: int
    detail: int
    detail_stride: int
    out: int
    out_stride: int
    row_tiles: int
    """Of a group, 16 rows each: 4 of gate and up, or 2 of up alone."""


JOIN = offsets(Join)


class Up(NamedTuple):
    """hidden = act(gate x) * (up x), or act(up x + bias) where there is no gate, by groups of 32 neurons."""

    form: int
    """Of gate and up."""
    table: int
    """int64 a group: its address, WAIT or ABSENT."""
    groups: int
    blocks: int
    x: int
    x_stride: int
    hidden: int
    """A block of 32 activations for each group, a row for each token."""
    hidden_stride: int
    down: int
    """The format that hidden will meet."""
    scratch: int
    scratch_stride: int
    """up_scratch_bytes for each thread."""
    details: int
    """int64 a group: the address of its detail plane, WAIT or WHOLE; or 0 where all groups are whole."""
    activation: int
    """Which function of HIDDEN_ACTS."""
    row_tiles: int
    """As in Join."""
    bias: int
    """float32, 32 a group; or 0, as always where there is a gate."""


UP = offsets(Up)


class Down(NamedTuple):
    """y += down hidden (+ bias), some segments of it: the first set their sums to zero, the last add them to y."""

    form: int
    table: int
    groups: int
    """Of the whole layer, as is `table`."""
    first: int
    last: int
    """Segments."""
    sums: int
    """The segments so far: float32 (tile, token, 16)."""
    gate_up: int
    """The format of gate and up, and their blocks: what comes before the down blocks in a group."""
    blocks: int
    headers: int
    """The down tiles' headers, one after another."""
    tiles: int
    hidden: int
    hidden_stride: int
    y: int
    y_stride: int
    scratch: int
    scratch_stride: int
    """down_scratch_bytes for each thread."""
    details: int
    """As in Up."""
    row_tiles: int
    """As in Join."""
    bias: int
    """float32, 16 a tile; or 0."""
    fresh: int = 0
    """1 where y is written over: its last operand in "y +=" is 0 then."""


DOWN = offsets(Down)


class Neurons(NamedTuple):
    """What NEURONS and GATHER do for one token: what UP and DOWN do for many, in SEGMENTS parts, then their sum."""

    table: int
    counters: int
    groups: int
    gate_up: int
    """A format."""
    blocks: int
    x: int
    down: int
    """A format."""
    headers: int
    tiles: int
    y: int
    partial: int
    """The segments' sums: float32 (tile, SEGMENTS, 16)."""
    scratch: int
    scratch_stride: int
    """neurons_scratch_bytes for each thread."""
    details: int
    """As in Up, and ABSENT for a group of which only the base takes part."""
    detail_counters: int
    activation: int
    """As in Up, and the two that follow."""
    row_tiles: int
    bias: int
    down_bias: int
    """As in Down, and the next one."""
    fresh: int = 0


NEURONS = offsets(Neurons)


class Choose(NamedTuple):
    """Which units of a layer have a neuron that is not zero, for any of the new tokens."""

    products: int
    products_stride: int
    """As in Sparse; and so the next four."""
    units: int
    in_unit: int
    neurons: int
    chosen: int
    table: int
    """int64 a unit: its address, or WAIT."""
    resident: int
    """1 where units that are not in memory are ABSENT too: for drafts."""
    used: int
    """int64 a unit, where `time` is written when it is needed; or 0."""
    time: int
    """Address of an int64."""
    layer: int
    asked: int
    """Address of an int64, where ASK writes `layer`."""
    semaphore: int
    """What ASK posts then."""


CHOOSE = offsets(Choose)


class Sparse(NamedTuple):
    """y += down hidden (+ bias) of the neurons of a sparse layer that are not zero (neuron_rows.py)."""

    table: int
    units: int
    in_unit: int
    """Neurons in a unit."""
    neurons: int
    """Of the layer."""
    neuron_bytes: int
    deciding_bytes: int
    """Of a neuron's row of the matrix that decides, which comes first; 0 where `products` are that matrix's."""
    deciding_bias: int
    """float32, of all neurons; or 0."""
    up_bytes: int
    """Of a neuron's up row, which is next; 0 where there is none."""
    up: int
    """The format of both."""
    down: int
    """Of its column."""
    blocks: int
    """Of a vector."""
    products: int
    """What the matrix that decides gave, its biases in it, or what a predictor did: float32, a row for each token. A
    neuron whose number is not above zero is not computed. SPARSE_UP puts activations in their place."""
    products_stride: int
    chosen: int
    """int64 a unit: WAIT for one that is needed, ABSENT for the others. SPARSE_UP puts addresses here, for
    SPARSE_DOWN."""
    x: int
    """float32, a row for each token; of SPARSE_ONE, of that token."""
    x_stride: int
    activation: int
    """Which function of HIDDEN_ACTS."""
    scratch: int
    scratch_stride: int
    """sparse_scratch_bytes for each thread."""
    tiles: int
    """Of 16 in y."""
    partial: int
    """As in Neurons."""
    y: int
    y_stride: int
    down_bias: int
    """float32, 16 a tile; or 0."""
    fresh: int = 0
    """As in Down."""


SPARSE = offsets(Sparse)


class Norm(NamedTuple):
    """x / sqrt(mean(x**2) + epsilon) * weight, in each form whose address is not 0; in LAYER_NORM the mean is taken
    from x first, and a bias is added, if there is one."""

    x: int
    x_stride: int
    weight: int
    """float32."""
    columns: int
    blocks: int
    epsilon: int
    """The bits of a float32."""
    floats: int
    floats_stride: int
    quantized: int
    quantized_stride: int
    fine: int
    fine_stride: int
    of_selected: int
    """1 to take the tokens whose logits are wanted, 0 for all new tokens."""
    bias: int = 0
    """float32; of LAYER_NORM alone."""


NORM = offsets(Norm)


class HeadNorms(NamedTuple):
    """x / sqrt(mean(x**2) + epsilon) * weight in place, of each query and key head; or, where `whole`, of all queries
    of a token together, and of all of its keys."""

    qkv: int
    """float32, a row for each token: queries, keys, values, head by head."""
    qkv_stride: int
    heads: int
    kv_heads: int
    head_dim: int
    query_weight: int
    key_weight: int
    """float32: of head_dim, or where `whole` of all heads."""
    whole: int
    epsilon: int
    """The bits of a float32."""


HEAD_NORMS = offsets(HeadNorms)


class Add(NamedTuple):
    """x += scale * y, or x += scale * (y / sqrt(mean(y**2) + epsilon) * weight)."""

    x: int
    """float32, a row for each token; so is y."""
    x_stride: int
    y: int
    y_stride: int
    columns: int
    weight: int
    """float32; 0 for no norm."""
    epsilon: int
    """The bits of a float32; so is the scale."""
    scale: int


ADD = offsets(Add)


class Scale(NamedTuple):
    """x = x * scale, or cap * tanh(x * scale / cap), of the rows of logits that are computed."""

    x: int
    x_stride: int
    tiles: int
    """Of 16 columns."""
    scale: int
    """The bits of a float32; so is the cap."""
    cap: int
    """0 for none."""


SCALE = offsets(Scale)


class LearnedPositions(NamedTuple):
    """x += a row of a matrix for each token: the one of its position."""

    form: int
    matrix: int
    """Address of its tiles."""
    first: int
    """The row of position 0."""
    blocks: int
    x: int
    x_stride: int
    scratch: int
    scratch_stride: int
    """A block of float32 for each thread."""


LEARNED_POSITIONS = offsets(LearnedPositions)


class Quantize(NamedTuple):
    """float32 rows to blocks, in each form whose address is not 0."""

    x: int
    x_stride: int
    blocks: int
    quantized: int
    quantized_stride: int
    fine: int
    fine_stride: int


QUANTIZE = offsets(Quantize)


class Rope(NamedTuple):
    """Rotates queries and keys, and puts keys and values into the cache."""

    cache_type: int
    """Its number in CACHE_TYPES."""
    qkv: int
    """float32, a row for each token: queries, keys, values, head by head."""
    qkv_stride: int
    heads: int
    kv_heads: int
    head_dim: int
    layer: int
    interleaved: int
    centers: int
    """float32 (kv_heads, head_dim), subtracted from keys that are quantized; 0 for none."""
    rotary_dim: int
    """How many components of a head are rotated, the first ones: 0 where this layer has no rotary positions."""
    table: int
    """Where among a token's angles those of this layer begin, in bytes."""


ROPE = offsets(Rope)


class Attention(NamedTuple):
    """softmax(q k * scale) v, or softmax(cap * tanh(q k * scale / cap)) v."""

    cache_type: int
    qkv: int
    qkv_stride: int
    heads: int
    kv_heads: int
    head_dim: int
    layer: int
    out: int
    """float32, a row for each token, head by head."""
    out_stride: int
    scratch: int
    scratch_stride: int
    """attention_scratch_bytes for each thread."""
    scale: int
    """The bits of a float32."""
    partial: int
    """Room for parts: float32 (token, head, part, 16 + padded head_dim); as many tokens and parts as fit."""
    partial_bytes: int
    window: int = 0
    """How many positions, the latest ones, itself among them, a token sees; 0 for all."""
    softcap: int = 0
    """The bits of a float32; 0 for none."""
    sinks: int = 0
    """float32 a head: a score that counts in the softmax and has no value (Xiao et al. 2023, "Efficient Streaming
    Language Models with Attention Sinks"); 0 for none."""


ATTENTION = offsets(Attention)


class Masses(NamedTuple):
    """Adds the weights of attention of one session's new tokens to what stands in `masses`."""

    cache_type: int
    qkv: int
    qkv_stride: int
    heads: int
    kv_heads: int
    head_dim: int
    layer: int
    scale: int
    """The bits of a float32."""
    scratch: int
    scratch_stride: int
    """attention_scratch_bytes for each thread."""
    masses: int
    """float32, a row for each key-value head, room in it for whole pages."""
    head_stride: int
    window: int = 0
    """As in Attention, and the next one."""
    softcap: int = 0


MASSES = offsets(Masses)


class Token(NamedTuple):
    """A new token: where it stands, and in which session. TOKEN_BYTES each, one after another.

    Neighbours in one call that have the same pages are of one session, at positions that follow one another, but for
    tokens *apart*: those whose key and value do not stand at their position. Such a token sees the positions before its
    own, and itself; no other sees it.
    """

    pages: int
    """Address of its session's table: int64, (layer, `layer_pages`) addresses of pages (pages.py)."""
    layer_pages: int
    head_bytes: int
    """Of a head in a page."""
    key_bytes: int
    """Of a head's keys in a page."""
    position: int
    """How many positions of the session it sees, but itself."""
    angles: int
    """Its position's rotary angles: rotary_dim / 2 cosines and as many sines, float32; such tables of all frequencies
    that the model has, one after another."""
    slot: int
    """Where among the session's positions its key and value stand: its position, if it is not apart."""
    low: int = 0
    """How many positions, the first ones, are in low pages (low_pages.py)."""


TOKEN_BYTES = 64
TOKEN = offsets(Token, 0)


class State(NamedTuple):
    """What the threads share, at the start of an array of STATE_BYTES bytes."""

    threads: int
    tokens: int
    """How many new tokens there are."""
    token_records: int
    """Address of a `Token` for each."""
    selected: int
    """How many rows the output head computes."""
    selected_rows: int
    """Address of their indices, int64."""
    yield_processor: int
    """Address of a C function that lets another thread run."""
    signal: int
    wait: int
    """Addresses of C functions that post a semaphore, and that wait for one."""
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
    """Semaphore to post when room was given back."""
    patience: int
    """Nanoseconds to wait for weights that do not come before giving up."""
    trace: int
    """Where to write the time after each operation, int64 nanoseconds, or 0."""
    cancelled: int
    """Address of an int64 that whoever wants the run's result no more sets to CANCELLED: the run ends."""


STATE = offsets(State, 0)
CANCELLED = 4
WAITING, GENERATION, NEXT, RUNS, WAITED, STATE_BYTES = 256, 320, 384, 448, 512, 576
"""On cache lines of their own: threads at the barrier, barriers passed, the next work item, runs begun, nanoseconds
that thread 0 waited for weights."""

SEGMENTS = 48
"""Parts into which a layer's groups are cut, always the same, whoever computes them: each is summed alone, then the
sums are added in order. So the result depends neither on the threads nor on how many tokens come at once."""
TOKENS_AT_ONCE = 32
"""Tokens that a thread takes through several tiles before the next ones: what they are stays in its caches."""
SPARSE_RANGE = 16
"""Blocks of 32 columns of the result that SPARSE_DOWN computes at once, for TOKENS_AT_ONCE tokens."""
UP_ROWS = TOKENS_AT_ONCE * 4 * TILE * 4
"""Bytes of a group's gate and up for those tokens."""

HIDDEN_ACTS = ("silu", "relu", "relu2", "gelu_tanh", "gelu", "clamped")
"""What a feed-forward part makes of its gate, or of what has none: named as in Hugging Face's config.json, but for
gelu_tanh, which has several names there, and clamped, which has none (functions.py)."""

SPLIT = 4 * PAGE
"""Positions that attention goes through before it combines: always the same ones, so that the result depends neither
on the threads nor on how many tokens come at once."""
VALUE_POSITIONS = 32
"""Positions whose values attention takes at once: they stay in the first-level cache while all rows use them."""
ROWS_TOGETHER = 48
"""Query heads times tokens that attention takes through the cache together, as far as there are no more heads."""
MOST_TOKENS_TOGETHER = 8


def down_bytes(tiles: int, tokens: int) -> int:
    """Room for the sums of the down projection."""
    return 64 * tiles * tokens


def partial_bytes(tiles: int) -> int:
    """Room for the segments' sums of NEURONS."""
    return SEGMENTS * 64 * tiles


NEURONS_SUMS = 512
"""Where in a thread's scratch for NEURONS the sums of a segment stand: two vectors a tile; then room for what is put
together of two planes."""


def neurons_scratch_bytes(tiles: int, tile_bytes: int, down_block: int) -> int:
    """Scratch that a thread needs for NEURONS. tile_bytes: of gate and up; down_block: bytes of a block of down."""
    return NEURONS_SUMS + 128 * tiles + max(tile_bytes, tiles * down_block)


def up_scratch_bytes(tile_bytes: int) -> int:
    """Scratch that a thread needs for UP: rows, and a tile that is put together."""
    return UP_ROWS + tile_bytes


def sparse_scratch_bytes(blocks: int) -> int:
    """Scratch that a thread needs for the neurons of sparse models: the sums of a token's segment, or those of some
    columns of many tokens and of a segment of them."""
    return max(128 * blocks, 2 * TOKENS_AT_ONCE * 128 * SPARSE_RANGE)


def down_scratch_bytes(groups: int, block_bytes: int) -> int:
    """Scratch that a thread needs for DOWN, so many groups at once: a table of them, and their blocks of a tile."""
    return -(-8 * groups // 64) * 64 + groups * block_bytes


def tokens_together(group: int) -> int:
    """Tokens that attention takes through the cache together, `group` query heads sharing a key-value head."""
    return min(max(ROWS_TOGETHER // group, 1), MOST_TOKENS_TOGETHER)


def attention_part_bytes(head_dim: int) -> int:
    """A part of one head: its largest score, the sum of its weights, and what they sum up to."""
    return 64 + 4 * padded_head_dim(head_dim)


def attention_partial_bytes(heads: int, head_dim: int, tokens: int, context: int) -> int:
    """Room for all parts of so many tokens at the end of a context."""
    return tokens * heads * -(-context // SPLIT) * attention_part_bytes(head_dim)


def attention_scratch_bytes(head_dim: int, group: int) -> int:
    """Scratch that a thread needs for attention: for each row its query, its scores in a split, those of some positions
    times the scales of their values, its sums twice, and its running state. A few rows more, as blocks of them are
    rounded up."""
    rows = tokens_together(group) * group + 8
    return rows * (3 * 4 * padded_head_dim(head_dim) + 4 * SPLIT + 4 * VALUE_POSITIONS + 2 * 64) + low_scratch_bytes(
        head_dim)


def low_scratch_bytes(head_dim: int) -> int:
    """Part of it: a widened low page (attention_low.py), behind 16 scales and as many offsets."""
    return 2 * 64 + 4 * PAGE * padded_head_dim(head_dim)
