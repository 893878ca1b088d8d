"""The SwiGLU part: groups of 32 neurons, each wherever memory had room."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import rig
from guarded import Buffer, floats
from hypothesis import given
from hypothesis import strategies as st
from weights_for import FORMAT_NAMES, Weights, matrix, product, seeds, values

from edgert.kernels import records
from edgert.kernels.formats import FINE_BLOCK, FORMATS, Format
from edgert.kernels.records import Code
from edgert.kernels.team import Team

PAIRS = [(up, down) for up in FORMAT_NAMES for down in FORMAT_NAMES]
pairs = pytest.mark.parametrize(("up_name", "down_name"), PAIRS)
formats = pytest.mark.parametrize("name", FORMAT_NAMES)


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


@formats
@rig.examples(6)
@given(seed=seeds, hidden_size=st.integers(1, 130), groups=st.integers(1, 6),
       tokens=st.one_of(st.integers(1, 9), st.integers(31, 70)), kind=st.sampled_from(["ordinary", "mixed"]))
def test_up_against_float64(target: str, name: str, seed: int, hidden_size: int, groups: int, tokens: int,
                            kind: str) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target, 2)
    n = neurons(rng, FORMATS[name], FORMATS["f32"], hidden_size, groups, kind)
    x = rig.activations(team, n.gate.form, values(rng, "ordinary", (tokens, hidden_size)))
    (gate, gate_error), (up, up_error) = (product(w, x.values) for w in (n.gate, n.up))
    silu = gate / (1 + np.exp(-np.maximum(gate, -700)))
    # |silu'| <= 1.1, exp is right to some 2**-22 and is held to e**88 at most.
    silu_error = 1.1 * gate_error + 2**-21 * np.abs(silu) + np.where(gate < -86, np.abs(gate) * 2e-38, 0)
    allowed = silu_error * (np.abs(up) + up_error) + (np.abs(silu) + silu_error) * up_error + 1e-37
    got = hidden(team, n, x, threads=2).values
    assert (np.abs(got - silu * up) <= allowed + 2**-23 * np.abs(silu * up)).all()


@pytest.mark.parametrize("down_name", ["q4", "q6", "q8"])
@formats
@rig.examples(4)
@given(seed=seeds, hidden_size=st.integers(1, 130), groups=st.integers(1, 6), tokens=st.integers(1, 9))
def test_up_quantizes_as_quantize_does(target: str, name: str, down_name: str, seed: int, hidden_size: int,
                                       groups: int, tokens: int) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target)
    n = neurons(rng, FORMATS[name], FORMATS[down_name], hidden_size, groups)
    x = rig.activations(team, n.gate.form, values(rng, "ordinary", (tokens, hidden_size)))
    as_floats = hidden(team, n, x, down=FORMATS["f32"]).buffer.view(np.float32).copy()
    want, _ = rig.quantize(team, as_floats, n.down.form.activation)
    assert np.array_equal(hidden(team, n, x).buffer.bytes, want.buffer.bytes)


@pairs
@rig.examples(2)
@given(seed=seeds, hidden_size=st.integers(1, 200), groups=st.integers(1, 19), tokens=st.integers(1, 9),
       cuts=st.sets(st.integers(1, records.SEGMENTS - 1), max_size=3).map(sorted))
def test_down_against_float64(target: str, up_name: str, down_name: str, seed: int, hidden_size: int, groups: int,
                              tokens: int, cuts: list[int]) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target, 2)
    n = neurons(rng, FORMATS[up_name], FORMATS[down_name], hidden_size, groups)
    h = rig.activations(team, n.down.form, values(rng, "ordinary", (tokens, 32 * groups)))
    y = values(rng, "ordinary", (tokens, len(n.down.exact)))
    exact, allowed = product(n.down, h.values)
    got = add_down(team, n, h, y, cuts=cuts)
    assert (np.abs(got - (y + exact)) <= allowed + 2**-23 * (np.abs(y) + np.abs(exact))).all()


@pytest.mark.parametrize(("up_name", "down_name"), [
    ("q4", "q6"), ("q6", "q4"), ("q8", "q8"), ("f16", "f16"), ("f32", "f32")])
@rig.examples(4)
@given(seed=seeds, hidden_size=st.integers(1, 200), groups=st.integers(1, 19), tokens=st.integers(2, 40))
def test_alone_or_with_others_on_any_number_of_threads(target: str, up_name: str, down_name: str, seed: int,
                                                        hidden_size: int, groups: int, tokens: int) -> None:
    rng = np.random.default_rng(seed)
    n = neurons(rng, FORMATS[up_name], FORMATS[down_name], hidden_size, groups, "mixed")
    x, y = values(rng, "ordinary", (tokens, hidden_size)), values(rng, "ordinary", (tokens, len(n.down.exact)))

    def result(threads: int, first: int, last: int, cuts: Sequence[int] = ()) -> np.ndarray:
        team = rig.team(target, threads)
        h = hidden(team, n, rig.activations(team, n.gate.form, x[first:last]), threads=threads)
        return add_down(team, n, h, y[first:last], cuts=cuts).view(np.int32)

    together = result(1, 0, tokens)
    for token in range(0, tokens, 1 + tokens // 4):
        assert np.array_equal(result(1, token, token + 1, range(1, records.SEGMENTS))[0], together[token])
    for threads in (2, 3, 4):
        assert np.array_equal(result(threads, 0, tokens, [threads, 9]), together), threads


def test_values_that_are_not_finite_are_reported(target: str) -> None:
    rng, team = np.random.default_rng(0), rig.team(target)
    n = neurons(rng, FORMATS["f32"], FORMATS["q8"], 64, 2, "large")
    x = floats(np.full((1, 64), 1e37, np.float32))
    out, scratch = Buffer(1, 2 * FINE_BLOCK), Buffer(1, records.UP_SCRATCH_BYTES)
    team.set(tokens=1)
    assert not rig.run(team, (Code.UP, records.Up(
        n.gate.form.code, n.table.ctypes.data, 2, 2, x.address, x.stride, out.address, out.stride, n.down.form.code,
        scratch.address, scratch.stride)))


@pairs
@rig.examples(2)
@given(seed=seeds, hidden_size=st.integers(1, 200), groups=st.integers(1, 40), threads=st.integers(1, 3))
def test_one_token_is_bit_equal_to_up_and_down(target: str, up_name: str, down_name: str, seed: int, hidden_size: int,
                                               groups: int, threads: int) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target, threads)
    n = neurons(rng, FORMATS[up_name], FORMATS[down_name], hidden_size, groups, "mixed")
    x, y = values(rng, "ordinary", (1, hidden_size)), values(rng, "ordinary", (1, len(n.down.exact)))
    given_x = rig.activations(team, n.gate.form, x)
    expected = add_down(team, n, hidden(team, n, given_x, threads=threads), y)
    got = one_token(team, n, given_x, y, threads=threads)
    assert np.array_equal(got.view(np.int32), expected.view(np.int32))


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


@pytest.mark.parametrize(("up_name", "down_name"), [
    ("q4", "q6"), ("q6", "q4"), ("q8", "q8"), ("f16", "f16"), ("f32", "f32"), ("q4", "q8")])
@rig.examples(6)
@given(seed=seeds, hidden_size=st.integers(1, 130), groups=st.integers(1, 60), tokens=st.integers(1, 9),
       threads=st.integers(1, 3), cuts=st.sets(st.integers(1, records.SEGMENTS - 1), max_size=2).map(sorted))
def test_absent_groups_add_nothing(target: str, up_name: str, down_name: str, seed: int, hidden_size: int, groups: int,
                                   tokens: int, threads: int, cuts: list[int]) -> None:
    """The result is that of the same part with zeros in their place; their hidden blocks are not written."""
    rng, team = np.random.default_rng(seed), rig.team(target, threads)
    n = neurons(rng, FORMATS[up_name], FORMATS[down_name], hidden_size, groups)
    x, y = values(rng, "ordinary", (tokens, hidden_size)), values(rng, "ordinary", (tokens, len(n.down.exact)))
    absent = rng.choice(groups, rng.integers(1, groups + 1), replace=False).tolist()
    given_x, zeros = rig.activations(team, n.gate.form, x), without(n, absent)
    expected = add_down(team, zeros, hidden(team, zeros, given_x, threads=threads), y)
    table = absent_table(n, absent)
    h = hidden(team, n, given_x, threads=threads, table=table)
    assert (h.buffer.bytes.reshape(tokens, groups, -1)[:, absent] == 0xFF).all()
    assert np.array_equal(add_down(team, n, h, y, cuts=cuts, table=table), expected)
    first = rig.activations(team, n.gate.form, x[:1])
    assert np.array_equal(one_token(team, n, first, y[:1], threads=threads, table=table), expected[:1])
    everything = np.full_like(table, records.ABSENT)
    assert np.array_equal(one_token(team, n, first, y[:1], threads=threads, table=everything), y[:1])
