"""A feed-forward part in groups of neurons, each wherever memory had room, and the operations on it."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import rig
from guarded import Buffer, floats
from weights_for import Weights, matrix

from edgert.kernels import records
from edgert.kernels.formats import Format
from edgert.kernels.records import Code
from edgert.kernels.team import Team


class Neurons(NamedTuple):
    """A feed-forward part as bundles hold it: groups at shuffled places, and the three matrices they came from."""

    gate: Weights
    up: Weights
    down: Weights
    groups: int
    memory: Buffer
    table: np.ndarray
    headers: np.ndarray
    offset: int


def neurons(rng: np.random.Generator, up_form: Format, down_form: Format, hidden_size: int, groups: int,
            kind: str = "ordinary") -> Neurons:
    gate, up = (matrix(rng, up_form, kind, 32 * groups, hidden_size) for _ in range(2))
    down = matrix(rng, down_form, kind, hidden_size, 32 * groups)
    body = down.packed[:, down_form.header_bytes:].reshape(len(down.packed), groups, down_form.block_bytes)
    parts = [np.concatenate([gate.packed[2 * g:2 * g + 2].ravel(), up.packed[2 * g:2 * g + 2].ravel(),
                             body[:, g].ravel()]) for g in range(groups)]
    memory = Buffer(groups, len(parts[0]), gap=int(rng.integers(1, 99)), shift=int(rng.integers(0, 64)))
    places = rng.permutation(groups)
    memory.bytes[places] = parts
    table = memory.address + places.astype(np.int64) * memory.stride
    headers = np.ascontiguousarray(down.packed[:, :down_form.header_bytes])
    return Neurons(gate, up, down, groups, memory, table, headers, 4 * up_form.tile_bytes(hidden_size))


def hidden(team: Team, n: Neurons, x: rig.Activations, *, threads: int = 1, down: Format | None = None,
           table: np.ndarray | None = None) -> rig.Activations:
    """silu(gate x) * (up x), in the form that `down` meets; by default what the group's own down meets."""
    tokens, form = len(x.buffer.bytes), down or n.down.form
    out = Buffer(tokens, n.groups * form.activation.block_bytes)
    scratch = Buffer(threads, records.UP_SCRATCH_BYTES)
    team.set(tokens=tokens)
    assert rig.run(team, (Code.UP, records.Up(
        n.gate.form.code, rig.address(n.table if table is None else table), n.groups, x.blocks, x.address, x.stride,
        out.address, out.stride, form.code, scratch.address, scratch.stride)))
    out.check()
    scratch.check()
    return rig.Activations(out, form.activation)


def add_down(team: Team, n: Neurons, h: rig.Activations, y: np.ndarray, *, cuts: Sequence[int] = (),
             table: np.ndarray | None = None) -> np.ndarray:
    """y + down h, in phases that end before the segments `cuts`."""
    tokens, tiles = len(y), len(n.down.packed)
    out, sums = floats(y), Buffer(1, records.down_bytes(tiles, tokens))
    team.set(tokens=tokens)
    ends = [0, *cuts, records.SEGMENTS]
    assert rig.run(team, *((Code.DOWN, records.Down(
        n.down.form.code, rig.address(n.table if table is None else table), n.groups, first, last, sums.address,
        n.offset, n.headers.ctypes.data, tiles, h.address, h.stride, out.address, out.stride))
        for first, last in itertools.pairwise(ends)))
    for buffer in (out, sums, h.buffer, n.memory):
        buffer.check()
    return out.view(np.float32).copy()


def one_token(team: Team, n: Neurons, x: rig.Activations, y: np.ndarray, *, threads: int = 1,
              table: np.ndarray | None = None, counters: np.ndarray | None = None) -> np.ndarray:
    """y + down(silu(gate x) * (up x)) of one token, by NEURONS and GATHER."""
    out, tiles = floats(y), len(n.down.packed)
    partial = Buffer(1, records.partial_bytes(tiles))
    scratch = Buffer(threads, records.neurons_scratch_bytes(tiles))
    record = records.Neurons(
        rig.address(n.table if table is None else table), rig.address(counters), n.groups, n.gate.form.code, x.blocks,
        x.address, n.down.form.code, n.offset, n.headers.ctypes.data, tiles, out.address, partial.address,
        scratch.address, scratch.stride)
    team.set(tokens=1)
    assert rig.run(team, (Code.NEURONS, record), (Code.GATHER, record))
    for buffer in (out, partial, scratch, n.memory, x.buffer):
        buffer.check()
    return out.view(np.float32).copy()


def without(n: Neurons, absent: Sequence[int]) -> Neurons:
    """The same part, with zeros for the weights of these groups in the down projection."""
    memory = Buffer(*n.memory.bytes.shape)
    memory.bytes[:] = n.memory.bytes
    places = (n.table - n.memory.address) // n.memory.stride
    memory.bytes[places[list(absent)], n.offset:] = 0
    return n._replace(memory=memory, table=memory.address + places * memory.stride)


def absent_table(n: Neurons, absent: Sequence[int]) -> np.ndarray:
    """A table in which these groups are absent. Where they were in memory nothing is a number any more."""
    places = (n.table - n.memory.address) // n.memory.stride
    n.memory.bytes[places[list(absent)]] = 0xFF
    table = n.table.copy()
    table[list(absent)] = records.ABSENT
    return table
