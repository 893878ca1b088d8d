"""Block-sparse weights of 4 bits: any columns there, one token and many, in matrices and in groups of neurons."""

import numpy as np
import pytest
import rig
from guarded import Buffer
from hypothesis import given
from hypothesis import strategies as st
from swiglu import PARTS, Neurons, activation, add_down, beside_gate, check_absent, hidden, one_token
from weights_for import Weights, matrix, product, seeds, values

from edgert.kernels import records
from edgert.kernels.block_packing import (
    columns_there,
    group_rooms,
    groups_of_size,
    packed_loosely,
    room_of_groups,
    room_of_tiles,
    tile_rooms,
    tiles_of_size,
    weights_of,
)
from edgert.kernels.formats import BLOCK, BLOCK_SPARSE, FORMATS, TILE, Format, Quantized
from edgert.kernels.groups import group_layout
from edgert.kernels.records import Code

sizes, few_tokens, densities = st.integers(1, 150), st.integers(1, 9), st.sampled_from([0, 0.03, 0.2, 0.5, 0.9, 1])


def sparse(rng: np.random.Generator, rows: int, columns: int, density: float) -> tuple[Quantized, np.ndarray]:
    """Random integers of whole tiles and blocks, of which so many columns of a tile are there, and some blocks have all
    columns or none; and what they stand for in float64."""
    tall, wide = -(-rows // TILE) * TILE, -(-columns // BLOCK) * BLOCK
    there = rng.random((tall // TILE, wide)) < density
    if rng.random() < 0.5:
        there &= np.repeat(rng.random((tall // TILE, wide // BLOCK)) < 0.7, BLOCK, axis=1)
        there |= np.repeat(rng.random((tall // TILE, wide // BLOCK)) < 0.1 * bool(density), BLOCK, axis=1)
    q = np.where(np.repeat(there, TILE, 0), rng.integers(-8, 8, (tall, wide)), 0).astype(np.int8)
    q[rows:], q[:, columns:] = 0, 0
    numbers = Quantized(q, rng.integers(0, 256, (tall, wide // BLOCK)).astype(np.uint8),
                        scale=values(rng, "mixed", (tall,)))
    assert numbers.scale is not None
    return numbers, q * np.repeat(numbers.s.astype(np.float64), BLOCK, 1) * numbers.scale[:, None].astype(np.float64)


def of_size(exact: np.ndarray, form: Format, packed: np.ndarray) -> Weights:
    return Weights(form, packed, exact, exact, np.zeros_like(exact))


def sparse_matrix(rng: np.random.Generator, rows: int, columns: int, density: float) -> Weights:
    numbers, exact = sparse(rng, rows, columns, density)
    form = BLOCK_SPARSE.of_size(room_of_tiles(columns_there(numbers.q)))
    return of_size(exact, form, tiles_of_size(form, packed_loosely(numbers)))


def sparse_neurons(rng: np.random.Generator, names: tuple[str, str], hidden_size: int, groups: int, density: float,
                   act: str = "silu", gated: bool = True) -> Neurons:
    """A feed-forward part of which gate and up, or down, or both are block-sparse, as bundles hold it."""
    up_name, down_name = names
    rows = 32 * groups
    if up_name == "q4b":
        made = [sparse(rng, rows, hidden_size, density) for _ in range(1 + gated)]
        form = BLOCK_SPARSE.of_size(max(room_of_tiles(columns_there(numbers.q)) for numbers, _ in made))
        by_rows = [of_size(exact, form, tiles_of_size(form, packed_loosely(numbers))) for numbers, exact in made]
    else:
        by_rows = [matrix(rng, FORMATS[up_name], "ordinary", rows, hidden_size) for _ in range(1 + gated)]
    if down_name == "q4b":
        numbers, exact = sparse(rng, hidden_size, rows, density)
        down_form = BLOCK_SPARSE.of_size(room_of_groups(columns_there(numbers.q)))
        loose = packed_loosely(numbers)
        body = groups_of_size(down_form, loose[:, 64:].reshape(len(loose), groups, -1).transpose(1, 0, 2))
        down = of_size(exact, down_form, loose)
    else:
        down = matrix(rng, FORMATS[down_name], "ordinary", hidden_size, rows)
        body = down.packed[:, down.form.header_bytes:].reshape(len(down.packed), groups, -1).transpose(1, 0, 2)
        body = body.reshape(groups, -1)
    contents = np.stack([np.concatenate([*(w.packed[2 * g:2 * g + 2].ravel() for w in by_rows), body[g]])
                         for g in range(groups)])
    memory = Buffer(*contents.shape, gap=int(rng.integers(1, 99)), shift=int(rng.integers(0, 64)))
    places = rng.permutation(groups)
    memory.bytes[places] = contents
    biases = (None, None) if gated else (values(rng, "ordinary", (rows,)), values(rng, "ordinary", (len(down.exact),)))
    return Neurons(by_rows[0] if gated else None, by_rows[-1], down, groups, memory,
                   memory.address + places.astype(np.int64) * memory.stride,
                   np.ascontiguousarray(down.packed[:, :down.form.header_bytes]),
                   group_layout(hidden_size, by_rows[0].form, down.form, gated=gated), act, *biases)


@rig.examples()
@given(seed=seeds, rows=sizes, columns=sizes, density=densities)
def test_packing_is_undone(seed: int, rows: int, columns: int, density: float) -> None:
    weights = sparse_matrix(np.random.default_rng(seed), rows, columns, density)
    assert np.allclose(weights_of(weights.packed, columns), weights.exact, rtol=1e-6, atol=1e-37)
    assert weights.form.room in tile_rooms(columns) and FORMATS[weights.form.name] == weights.form


@rig.examples()
@given(seed=seeds, rows=sizes, columns=sizes, tokens=few_tokens, density=densities)
def test_against_float64(target: str, seed: int, rows: int, columns: int, tokens: int, density: float) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target, 2)
    weights = sparse_matrix(rng, rows, columns, density)
    x = rig.activations(team, weights.form, values(rng, "ordinary", (tokens, columns)))
    exact, allowed = product(weights, x.values)
    assert (np.abs(rig.linear(team, weights.form, weights.packed, x) - exact) <= allowed).all()


@rig.examples(8)
@given(seed=seeds, rows=st.integers(1, 400), columns=sizes, tokens=st.integers(2, 40), density=densities)
def test_alone_or_with_others_on_any_number_of_threads(target: str, seed: int, rows: int, columns: int, tokens: int,
                                                       density: float) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target)
    weights = sparse_matrix(rng, rows, columns, density)
    x = values(rng, "mixed", (tokens, columns))
    bias, before = values(rng, "mixed", (len(weights.exact),)), values(rng, "mixed", (tokens, len(weights.exact)))

    def result(threads: int, first: int, last: int) -> np.ndarray:
        one = rig.team(target, threads)
        return rig.linear(one, weights.form, weights.packed, rig.activations(one, weights.form, x[first:last]),
                          bias=bias, add_to=before[first:last]).view(np.int32)

    together = result(1, 0, tokens)
    plain = rig.linear(team, weights.form, weights.packed, rig.activations(team, weights.form, x))
    assert np.array_equal(together.view(np.float32), before + (plain + bias))
    for token in range(0, tokens, 1 + tokens // 5):
        assert np.array_equal(result(1, token, token + 1)[0], together[token])
    for threads in (2, 3):
        assert np.array_equal(result(threads, 0, tokens), together)


def test_products_are_exact_at_the_ends_of_the_range(target: str) -> None:
    """Every column at its largest, of the same sign or in turns: what is added in 16 bits fits."""
    for low, high in ((-8, -8), (7, 7), (-8, 7)):
        q = np.tile(np.where(np.arange(64) % 2, low, high), (32, 1)).astype(np.int8)
        form = BLOCK_SPARSE.of_size(room_of_tiles(columns_there(q)))
        packed = tiles_of_size(form, packed_loosely(Quantized(q, np.ones((32, 2), np.uint8), scale=np.ones(32))))
        for x in (127, -127, np.where(np.arange(64) % 2, 127, -127)):
            rows = np.broadcast_to(x, (3, 64)).astype(np.float32)
            given_x = rig.activations(rig.team(target), form, rows)
            exact = given_x.q.reshape(3, 64) @ q.T.astype(np.int64)
            got = rig.linear(rig.team(target), form, packed, given_x)
            assert np.allclose(got, exact * given_x.scale[0, 0], rtol=1e-6)
            one = rig.linear(rig.team(target), form, packed, rig.activations(rig.team(target), form, rows[:1]))
            assert np.array_equal(one[0], got[0])


PAIRS = [("q4b", "q4b"), ("q4b", "q4"), ("q4", "q4b"), ("f16", "q4b"), ("q4b", "f32")]
pairs = pytest.mark.parametrize("names", PAIRS)


@pairs
@rig.examples(5)
@given(seed=seeds, hidden_size=st.integers(1, 200), groups=st.integers(1, 60), density=densities,
       part=st.sampled_from(PARTS), tokens=st.integers(1, 20), threads=st.integers(1, 3),
       cuts=st.sets(st.integers(1, records.SEGMENTS - 1), max_size=2).map(sorted))
def test_a_feed_forward_part(target: str, names: tuple[str, str], seed: int, hidden_size: int, groups: int,
                             density: float, part: dict, tokens: int, threads: int, cuts: list[int]) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target, threads)
    n = sparse_neurons(rng, names, hidden_size, groups, density, **part)
    x, y = values(rng, "ordinary", (tokens, hidden_size)), values(rng, "ordinary", (tokens, len(n.down.exact)))
    given_x = rig.activations(team, n.up.form, x)
    up = product(n.up, given_x.values)[0]
    wanted = (activation(n, product(n.gate, given_x.values)[0]) * beside_gate(n, up) if n.gate else
              activation(n, up + n.up_bias))
    as_floats = hidden(team, n, given_x, threads=threads, down=FORMATS["f32"]).values
    assert np.allclose(as_floats, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    h = hidden(team, n, given_x, threads=threads)
    exact, allowed = product(n.down, h.values)
    if n.down_bias is not None:
        exact += n.down_bias
        allowed += 2**-23 * (np.abs(exact) + np.abs(n.down_bias))
    together = add_down(team, n, h, y, cuts=cuts)
    assert (np.abs(together - (y + exact)) <= allowed + 2**-22 * (np.abs(y) + np.abs(exact))).all()
    alone = one_token(team, n, rig.activations(team, n.up.form, x[:1]), y[:1], threads=threads)
    assert np.array_equal(alone.view(np.int32)[0], together.view(np.int32)[0])


@rig.examples(6)
@given(seed=seeds, hidden_size=st.integers(1, 130), groups=st.integers(1, 60), tokens=st.integers(1, 9),
       density=densities)
def test_absent_groups_add_nothing(target: str, seed: int, hidden_size: int, groups: int, tokens: int,
                                   density: float) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target, 2)
    n = sparse_neurons(rng, ("q4b", "q4b"), hidden_size, groups, density)
    x, y = values(rng, "ordinary", (tokens, hidden_size)), values(rng, "ordinary", (tokens, len(n.down.exact)))
    absent = rng.choice(groups, rng.integers(1, groups + 1), replace=False).tolist()
    check_absent(team, n, absent, x, y, threads=2)


@rig.examples(20)
@given(seed=seeds, hidden_size=st.integers(1, 130), groups=st.integers(1, 4))
def test_forged_weights_read_no_foreign_memory(target: str, seed: int, hidden_size: int, groups: int) -> None:
    """Any bytes give some result, from what is in their room: what stands beside it does not change it."""
    rng, team = np.random.default_rng(seed), rig.team(target)
    n = sparse_neurons(rng, ("q4b", "q4b"), hidden_size, groups, 0.3)
    assert n.down.form.room in group_rooms(len(n.down.packed))
    start = n.layout.whole.down
    places = (n.table - n.memory.address) // n.memory.stride
    for at, size in ((64, 32), (start, 32 + 2 * len(n.down.packed)), (0, n.memory.bytes.shape[1])):
        n.memory.bytes[:, at:at + size] = rng.integers(0, 256, n.memory.bytes[:, at:at + size].shape, np.uint8)
        x = rig.activations(team, n.up.form, values(rng, "ordinary", (1, hidden_size)))
        record_x = x.buffer.bytes.copy()
        out = Buffer(1, n.groups * 40)
        scratch = Buffer(1, records.up_scratch_bytes(n.up.packed.shape[1]))
        team.set(tokens=1)
        rig.run(team, (Code.UP, records.Up(
            n.up.form.code, n.table.ctypes.data, n.groups, x.blocks, x.address, x.stride, out.address, out.stride,
            n.down.form.code, scratch.address, scratch.stride, 0, 0, n.row_tiles, 0)))
        out.check()
        h = rig.Activations(Buffer(1, n.groups * 40), n.down.form.activation)
        h.buffer.bytes[:] = 1
        add_down(team, n, h, np.zeros((1, len(n.down.exact)), np.float32))
        assert np.array_equal(record_x, x.buffer.bytes) and len(places) == groups


@pytest.mark.parametrize("name", ["q4b", "q4b-", "q4b-7", "q4b-0", "q4b-00104", "q4b-1000000", "q4-104", 7, None])
def test_sizes_that_are_none(name: object) -> None:
    assert name not in FORMATS

