"""A feed-forward part in groups of neurons, each wherever memory had room, and the operations on it."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import rig
from guarded import Buffer, floats
from weights_for import Weights, matrix

from edgert.kernels import records
from edgert.kernels.formats import Format, planes
from edgert.kernels.groups import GroupLayout, group_layout, row_tiles_of
from edgert.kernels.records import ABSENT, HIDDEN_ACTS, WHOLE, Code
from edgert.kernels.team import Team

PARTS = [{"act": act, "gated": gated} for act in HIDDEN_ACTS for gated in (True, False)]
"""Every kind of feed-forward part, as options of `neurons`."""


class Neurons(NamedTuple):
    """A feed-forward part as bundles hold it: groups at shuffled places, and the matrices they came from.

    gate: None where there is none; then there are biases of up and of down.

    memory: of whole groups. details: the table of detail planes, None where all groups are whole; `planes` is then the
    memory of base planes and that of details.
    """

    gate: Weights | None
    up: Weights
    down: Weights
    groups: int
    memory: Buffer
    table: np.ndarray
    headers: np.ndarray
    layout: GroupLayout
    act: str = "silu"
    up_bias: np.ndarray | None = None
    down_bias: np.ndarray | None = None
    details: np.ndarray | None = None
    planes: tuple[Buffer, ...] = ()

    @property
    def row_tiles(self) -> int:
        return row_tiles_of(gated=self.gate is not None)

    @property
    def row_blocks(self) -> int:
        """Of a tile of rows."""
        return self.up.packed.shape[1] // self.up.form.block_bytes

    def check(self) -> None:
        for buffer in (self.memory, *self.planes):
            buffer.check()


def neurons(rng: np.random.Generator, up_form: Format, down_form: Format, hidden_size: int, groups: int,
            kind: str = "ordinary", *, act: str = "silu", gated: bool = True) -> Neurons:
    gate, up = (matrix(rng, up_form, kind, 32 * groups, hidden_size) if exists else None for exists in (gated, True))
    assert up is not None
    down = matrix(rng, down_form, kind, hidden_size, 32 * groups)
    body = down.packed[:, down_form.header_bytes:].reshape(len(down.packed), groups, down_form.block_bytes)
    by_rows = [weights.packed for weights in (gate, up) if weights]
    parts = [np.concatenate([*(packed[2 * g:2 * g + 2].ravel() for packed in by_rows), body[:, g].ravel()])
             for g in range(groups)]
    memory, table = _placed(rng, np.stack(parts))
    headers = np.ascontiguousarray(down.packed[:, :down_form.header_bytes])
    biases = (None, None) if gated else (rng.standard_normal(32 * groups, np.float32),
                                         rng.standard_normal(len(down.exact), np.float32))
    return Neurons(gate, up, down, groups, memory, table, headers,
                   group_layout(hidden_size, up_form, down_form, gated=gated), act, *biases)


def _placed(rng: np.random.Generator, content: np.ndarray) -> tuple[Buffer, np.ndarray]:
    """Rows of bytes in shuffled order, and where each of them is."""
    memory = Buffer(*content.shape, gap=int(rng.integers(1, 99)), shift=int(rng.integers(0, 64)))
    places = rng.permutation(len(content))
    memory.bytes[places] = content
    return memory, memory.address + places.astype(np.int64) * memory.stride


def contents(n: Neurons) -> np.ndarray:
    """The bytes of each group, whole: uint8 of shape (groups, bytes)."""
    return n.memory.bytes[(n.table - n.memory.address) // n.memory.stride]


def planes_of(n: Neurons) -> list[np.ndarray]:
    """The bases and the details of all groups, without padding: uint8 of shape (groups, bytes) each."""
    form, down, whole = n.up.form, n.down.form, contents(n)
    tiles = whole[:, :n.layout.whole.down].reshape(n.groups, n.row_tiles, -1)
    headers = tiles[:, :, :form.header_bytes]
    bases, details = _split(form, tiles[:, :, form.header_bytes:].reshape(n.groups, n.row_tiles, -1, form.block_bytes))
    down_bases, down_details = _split(down, whole[:, n.layout.whole.down:].reshape(n.groups, -1, down.block_bytes))
    rows = n.groups
    tile_bases = np.concatenate([headers, bases.reshape(rows, n.row_tiles, -1)], 2)
    return [np.concatenate([tile_bases.reshape(rows, -1), down_bases.reshape(rows, -1)], 1),
            np.concatenate([details.reshape(rows, -1), down_details.reshape(rows, -1)], 1)]


def _split(form: Format, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return planes(form, blocks) if form.detail_bytes else (blocks, blocks[..., :0])


def in_planes(rng: np.random.Generator, n: Neurons, *, two: Iterable[int] = (), bases: Iterable[int] = ()) -> Neurons:
    """The same part, but of the groups `two` the planes are in two places, and of `bases` there is only the base. What
    is not to be read is no number."""
    two, bases = list(two), list(bases)
    memory = Buffer(*n.memory.bytes.shape)
    places = (n.table - n.memory.address) // n.memory.stride
    memory.bytes[:] = n.memory.bytes
    memory.bytes[places[two + bases]] = 0xFF
    base, detail = planes_of(n)
    here = np.zeros(n.groups, bool)
    here[two] = True
    detail[~here] = 0xFF
    here[bases] = True
    base[~here] = 0xFF
    (base_memory, at), (detail_memory, details_at) = _placed(rng, base), _placed(rng, detail)
    table, details = memory.address + places * memory.stride, np.full(n.groups, WHOLE)
    table[two + bases] = at[two + bases]
    details[two], details[bases] = details_at[two], ABSENT
    return n._replace(memory=memory, table=table, details=details, planes=(base_memory, detail_memory))


def hidden(team: Team, n: Neurons, x: rig.Activations, *, threads: int = 1, down: Format | None = None,
           table: np.ndarray | None = None) -> rig.Activations:
    """act(gate x) * (up x), or act(up x + bias), in the form that `down` meets; by default what the group's own down
    meets."""
    tokens, form = len(x.buffer.bytes), down or n.down.form
    out = Buffer(tokens, n.groups * form.activation.block_bytes)
    scratch = Buffer(threads, records.up_scratch_bytes(n.up.packed.shape[1]))
    team.set(tokens=tokens)
    assert rig.run(team, (Code.UP, records.Up(
        n.up.form.code, rig.address(n.table if table is None else table), n.groups, x.blocks, x.address, x.stride,
        out.address, out.stride, form.code, scratch.address, scratch.stride, rig.address(n.details),
        HIDDEN_ACTS.index(n.act), n.row_tiles, rig.address(n.up_bias))))
    out.check()
    scratch.check()
    n.check()
    return rig.Activations(out, form.activation)


def add_down(team: Team, n: Neurons, h: rig.Activations, y: np.ndarray, *, threads: int = 8, cuts: Sequence[int] = (),
             table: np.ndarray | None = None, fresh: int = 0) -> np.ndarray:
    """y + down h, in phases that end before the segments `cuts`; fresh: as in records.Down."""
    tokens, tiles = len(y), len(n.down.packed)
    out, sums = floats(y), Buffer(1, records.down_bytes(tiles, tokens))
    ends = [0, *cuts, records.SEGMENTS]
    most = max(last * n.groups // records.SEGMENTS - first * n.groups // records.SEGMENTS
               for first, last in itertools.pairwise(ends))
    scratch = Buffer(threads, records.down_scratch_bytes(most, n.down.form.block_bytes))
    team.set(tokens=tokens)
    assert rig.run(team, *((Code.DOWN, records.Down(
        n.down.form.code, rig.address(n.table if table is None else table), n.groups, first, last, sums.address,
        n.up.form.code, n.row_blocks, n.headers.ctypes.data, tiles, h.address, h.stride, out.address, out.stride,
        scratch.address, scratch.stride, rig.address(n.details), n.row_tiles, rig.address(n.down_bias), fresh))
        for first, last in itertools.pairwise(ends)))
    for buffer in (out, sums, scratch, h.buffer, n):
        buffer.check()
    return out.view(np.float32).copy()


def one_token(team: Team, n: Neurons, x: rig.Activations, y: np.ndarray, *, threads: int = 1,
              table: np.ndarray | None = None, counters: np.ndarray | None = None,
              detail_counters: np.ndarray | None = None, fresh: int = 0) -> np.ndarray:
    """y + down(act(gate x) * (up x)), or y + down(act(up x + bias)) + bias, of one token, by NEURONS and GATHER."""
    out, tiles = floats(y), len(n.down.packed)
    partial = Buffer(1, records.partial_bytes(tiles))
    scratch = Buffer(threads, records.neurons_scratch_bytes(tiles, n.up.packed.shape[1], n.down.form.block_bytes))
    record = records.Neurons(
        rig.address(n.table if table is None else table), rig.address(counters), n.groups, n.up.form.code, x.blocks,
        x.address, n.down.form.code, n.headers.ctypes.data, tiles, out.address, partial.address, scratch.address,
        scratch.stride, rig.address(n.details), rig.address(detail_counters), HIDDEN_ACTS.index(n.act), n.row_tiles,
        rig.address(n.up_bias), rig.address(n.down_bias), fresh)
    team.set(tokens=1)
    assert rig.run(team, (Code.NEURONS, record), (Code.GATHER, record))
    for buffer in (out, partial, scratch, n, x.buffer):
        buffer.check()
    return out.view(np.float32).copy()


def joined(team: Team, rng: np.random.Generator, n: Neurons) -> np.ndarray:
    """What JOIN makes of the groups' planes: uint8 of shape (groups, bytes)."""
    base, detail = planes_of(n)
    out = Buffer(*n.memory.bytes.shape, gap=int(rng.integers(1, 99)), shift=int(rng.integers(0, 64)))
    memory = [Buffer(*plane.shape, gap=int(rng.integers(1, 99)), shift=int(rng.integers(0, 64)))
              for plane in (base, detail)]
    for buffer, plane in zip(memory, (base, detail), strict=True):
        buffer.bytes[:] = plane
    assert rig.run(team, (Code.JOIN, records.Join(
        n.groups, n.up.form.code, n.row_blocks, n.down.form.code,
        len(n.down.packed), memory[0].address, memory[0].stride, memory[1].address, memory[1].stride, out.address,
        out.stride, n.row_tiles)))
    for buffer, plane in zip(memory, (base, detail), strict=True):
        buffer.check()
        assert np.array_equal(buffer.bytes, plane)
    out.check()
    return out.bytes


def activation(n: Neurons, x: np.ndarray) -> np.ndarray:
    """In float64."""
    if n.act == "silu":
        return x / (1 + np.exp(-np.maximum(x, -700)))
    if n.act == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    if n.act == "clamped":
        x = np.minimum(x, 7)
        return x / (1 + np.exp(-1.702 * np.maximum(x, -400)))
    if n.act == "gelu":
        return 0.5 * x * np.vectorize(math.erfc)(-x / np.sqrt(2))
    return np.maximum(x, 0) ** {"relu": 1, "relu2": 2}[n.act]


def beside_gate(n: Neurons, up: np.ndarray) -> np.ndarray:
    """What a gate is multiplied by, in float64."""
    return np.clip(up, -7, 7) + 1 if n.act == "clamped" and n.gate is not None else up


def activation_error(n: Neurons, x: np.ndarray, error: np.ndarray) -> np.ndarray:
    """How far `activation` of what is as far from x may be from that of x, in float32."""
    if n.act == "silu":  # |silu'| <= 1.1, exp is right to some 2**-22 and is held to e**88 at most.
        return 1.1 * error + 2**-21 * np.abs(activation(n, x)) + np.where(x < -86, np.abs(x) * 2e-38, 0)
    if n.act == "clamped":
        return (1.2 * error + 2**-20 * np.abs(activation(n, x)) * (1 + np.abs(np.maximum(x, -99)))
                + np.where(x < -50, np.abs(x) * 2e-38, 0))
    if n.act.startswith("gelu"):  # |gelu'| <= 1.13; the exponent is off by 2**-23 of itself
        return 1.13 * error + (2**-20 + 2**-22 * np.minimum(x**2, 99)) * np.abs(activation(n, x)) + 1e-15
    return error if n.act == "relu" else (2 * np.abs(x) + error) * error + 2**-23 * x**2


def without(n: Neurons, absent: Sequence[int]) -> Neurons:
    """The same part, with zeros for the weights of these groups in the down projection."""
    memory = Buffer(*n.memory.bytes.shape)
    memory.bytes[:] = n.memory.bytes
    places = (n.table - n.memory.address) // n.memory.stride
    memory.bytes[places[list(absent)], n.layout.whole.down:] = 0
    return n._replace(memory=memory, table=memory.address + places * memory.stride)


def check_absent(team: Team, n: Neurons, absent: Sequence[int], x: np.ndarray, y: np.ndarray, *, threads: int,
                 cuts: Sequence[int] = ()) -> None:
    """Absent groups add nothing: the result is that of the same part with zeros in their place; their hidden blocks are
    not written. x, y: float32 of shape (tokens, hidden size)."""
    given_x, zeros = rig.activations(team, n.up.form, x), without(n, absent)
    expected = add_down(team, zeros, hidden(team, zeros, given_x, threads=threads), y)
    table = absent_table(n, absent)
    h = hidden(team, n, given_x, threads=threads, table=table)
    assert (h.buffer.bytes.reshape(len(x), n.groups, -1)[:, absent] == 0xFF).all()
    assert np.array_equal(add_down(team, n, h, y, cuts=cuts, table=table), expected)
    first = rig.activations(team, n.up.form, x[:1])
    assert np.array_equal(one_token(team, n, first, y[:1], threads=threads, table=table), expected[:1])
    everything = np.full_like(table, ABSENT)
    nothing = y[:1] if n.down_bias is None else y[:1] + n.down_bias
    assert np.array_equal(one_token(team, n, first, y[:1], threads=threads, table=everything), nothing)


def absent_table(n: Neurons, absent: Sequence[int]) -> np.ndarray:
    """A table in which these groups are absent. Where they were in memory nothing is a number any more."""
    places = (n.table - n.memory.address) // n.memory.stride
    n.memory.bytes[places[list(absent)]] = 0xFF
    table = n.table.copy()
    table[list(absent)] = records.ABSENT
    return table
