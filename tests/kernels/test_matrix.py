"""y = W x for every weight format."""

import numpy as np
import pytest
import rig
from guarded import Buffer
from hypothesis import given
from hypothesis import strategies as st
from tested_targets import TESTED
from weights_for import FORMAT_NAMES, kinds, matrix, product, seeds, there, values

from edgert.kernels.formats import FORMATS, SLAB, Activation, Format, Quantized, pack

formats = pytest.mark.parametrize("name", FORMAT_NAMES)
few_tokens, sizes = st.integers(1, 9), st.integers(1, 150)


@formats
@rig.examples()
@given(seed=seeds, kind=kinds, x_kind=kinds, rows=sizes, columns=sizes, tokens=few_tokens)
def test_against_float64(target: str, name: str, seed: int, kind: str, x_kind: str, rows: int, columns: int,
                         tokens: int) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target, 2)
    weights = matrix(rng, FORMATS[name], kind, rows, columns)
    x = rig.activations(team, weights.form, values(rng, x_kind, (tokens, columns)))
    exact, allowed = product(weights, x.values)
    assert (np.abs(rig.linear(team, weights.form, weights.packed, x) - exact) <= allowed).all()


@formats
@rig.examples(5)
@given(seed=seeds, rows=sizes, columns=sizes, tokens=few_tokens)
def test_bias_and_addition(target: str, name: str, seed: int, rows: int, columns: int, tokens: int) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target)
    weights = matrix(rng, FORMATS[name], "ordinary", rows, columns)
    x = rig.activations(team, weights.form, values(rng, "ordinary", (tokens, columns)))
    tall = len(weights.exact)
    bias, before = values(rng, "mixed", (tall,)), values(rng, "mixed", (tokens, tall))
    y = rig.linear(team, weights.form, weights.packed, x)
    assert np.array_equal(rig.linear(team, weights.form, weights.packed, x, bias=bias), y + bias)
    assert np.array_equal(rig.linear(team, weights.form, weights.packed, x, add_to=before), before + y)
    both = rig.linear(team, weights.form, weights.packed, x, bias=bias, add_to=before)
    assert np.array_equal(both, before + (y + bias))


@formats
@rig.examples(5)
@given(seed=seeds, rows=st.integers(1, 400), columns=sizes, tokens=st.integers(2, 40))
def test_alone_or_with_others_on_any_number_of_threads(target: str, name: str, seed: int, rows: int, columns: int,
                                                        tokens: int) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target)
    weights = matrix(rng, FORMATS[name], "mixed", rows, columns)
    x = values(rng, "mixed", (tokens, columns))
    together = rig.linear(team, weights.form, weights.packed, rig.activations(team, weights.form, x))
    for token in range(0, tokens, 1 + tokens // 5):
        alone = rig.linear(team, weights.form, weights.packed, rig.activations(team, weights.form, x[token:token + 1]))
        assert np.array_equal(alone[0].view(np.int32), together[token].view(np.int32))
    for threads in (2, 3, 4):
        other = rig.team(target, threads)
        y = rig.linear(other, weights.form, weights.packed, rig.activations(other, weights.form, x))
        assert np.array_equal(y.view(np.int32), together.view(np.int32)), threads


@rig.examples(20)
@given(seed=seeds, threads=st.integers(1, 3), tokens=few_tokens,
       several=st.lists(st.tuples(st.sampled_from(FORMAT_NAMES), st.integers(1, 200), sizes), min_size=2, max_size=4))
def test_several_matrices_in_one_operation(target: str, seed: int, threads: int, tokens: int,
                                           several: list[tuple[str, int, int]]) -> None:
    """Of any formats and sizes: each result is what it is alone."""
    rng, team = np.random.default_rng(seed), rig.team(target, threads)
    products = []
    for name, rows, columns in several:
        weights = matrix(rng, FORMATS[name], "ordinary", rows, columns)
        x = rig.activations(team, weights.form, values(rng, "ordinary", (tokens, columns)))
        bias = values(rng, "ordinary", (16 * len(weights.packed),)) if rng.random() < 0.5 else None
        products.append(rig.Product(weights.form, weights.packed, x, bias))
    for one, y in zip(products, rig.joined(team, products), strict=True):
        assert np.array_equal(y, rig.linear(team, one.form, one.packed, one.x, bias=one.bias))


@formats
@rig.examples(5)
@given(seed=seeds, rows=st.integers(1, 400), threads=st.integers(1, 3))
def test_the_output_head_is_bit_equal(target: str, name: str, seed: int, rows: int, threads: int) -> None:
    """For the number of rows that comes from `selected`, not from `tokens`."""
    rng, team = np.random.default_rng(seed), rig.team(target, threads)
    weights = matrix(rng, FORMATS[name], "ordinary", rows, 70)
    x = rig.activations(team, weights.form, values(rng, "ordinary", (6, 70)))
    every = rig.linear(team, weights.form, weights.packed, x)
    for selected in (1, 2, 5):
        got = rig.linear(team, weights.form, weights.packed, x, selected=selected)
        assert np.array_equal(got, every[:selected])


@formats
@rig.examples(5)
@given(seed=seeds, rows=st.integers(1, 400), threads=st.integers(1, 3), tokens=few_tokens)
def test_slabs_may_be_anywhere(target: str, name: str, seed: int, rows: int, threads: int, tokens: int) -> None:
    """Each in a place of its own, the last with fewer tiles."""
    rng, team = np.random.default_rng(seed), rig.team(target, threads)
    weights = matrix(rng, FORMATS[name], "ordinary", rows, 40)
    x = rig.activations(team, weights.form, values(rng, "ordinary", (tokens, 40)))
    slabs = [weights.packed[at:at + SLAB].ravel() for at in range(0, len(weights.packed), SLAB)]
    memory = Buffer(len(slabs), SLAB * weights.packed.shape[1], gap=int(rng.integers(1, 99)),
                    shift=int(rng.integers(0, 64)))
    places = rng.permutation(len(slabs))
    for place, slab in zip(places, slabs, strict=True):
        memory.bytes[place, :len(slab)] = slab
    table = memory.address + places.astype(np.int64) * memory.stride
    got = rig.linear(team, weights.form, weights.packed, x, table=table)
    assert np.array_equal(got, rig.linear(team, weights.form, weights.packed, x))


def integers(q: np.ndarray, r: np.ndarray, form: Activation) -> rig.Activations:
    """Activation blocks of scale 1 that hold these integers: (tokens, blocks, 32) of -127..127, and of -64..64."""
    raw = np.zeros(q.shape[:2], rig.QUANTIZED if form is Activation.QUANTIZED else rig.FINE)
    raw["q"], raw["scale"] = q, 1
    if form is Activation.QUANTIZED:
        raw["scaled_sum"] = q.sum(2, dtype=np.int64)
    else:
        raw["r"], raw["sum"], raw["unused"] = r, (128 * q.astype(np.int64) + r).sum(2), 0xFF
    buffer = Buffer(len(q), form.block_bytes * q.shape[1])
    buffer.bytes[:] = raw.view(np.uint8).reshape(len(q), -1)
    return rig.Activations(buffer, form)


def some_integers(rng: np.random.Generator, tokens: int, blocks: int, form: Activation) -> rig.Activations:
    """Many of them at the ends of the range."""
    def extreme(most: int) -> np.ndarray:
        numbers = rng.integers(-most, most + 1, (tokens, blocks, 32))
        return np.where(rng.random(numbers.shape) < 0.5, np.sign(numbers) * most, numbers)

    return integers(extreme(127), extreme(64), form)


def of_integers(form: Format, q: np.ndarray, *, minimum: int = 0) -> np.ndarray:
    """A packed matrix with the weights q - minimum: all scales are 1."""
    tall, wide = q.shape
    ones, one = np.ones((tall, wide // 32)), np.ones(tall, np.float32)
    if form.name in ("q8", "ternary"):
        return pack(form, Quantized(q.astype(np.int8), ones.astype(np.float32), scale=one))
    if form.name == "q4n":
        return pack(form, Quantized(q.astype(np.int8), ones.astype(np.uint8), scale=one))
    return pack(form, Quantized(q.astype(np.uint8), ones.astype(np.uint8), (minimum * ones).astype(np.uint8), one, one))


def exact_product(form: Format, q: np.ndarray, x: rig.Activations) -> np.ndarray:
    """Integer arithmetic; float32 must have it. For 8-bit weights it may be above 2**24: then each block is rounded,
    and their sum."""
    blocks = [x.numbers[:, i] @ q[:, 32 * i:32 * i + 32].T for i in range(q.shape[1] // 32)]
    assert max(np.abs(block).max() for block in blocks) < 2**31
    if form.activation is Activation.QUANTIZED:
        assert np.abs(sum(blocks)).max() < 2**24
    total = np.zeros(blocks[0].shape, np.float32)
    for block in blocks:
        total += block.astype(np.float32)
    return total


INTEGERS = {"q2": (0, 3), "q3": (0, 7), "q4": (0, 15), "q6": (0, 63), "q8": (-127, 127), "ternary": (-1, 1),
            "q4n": (-8, 7)}
"""The smallest and the largest of each format."""


@pytest.mark.parametrize("name", INTEGERS)
@rig.examples(20)
@given(seed=seeds, tokens=few_tokens)
def test_integer_dot_products_are_exact(target: str, name: str, seed: int, tokens: int) -> None:
    rng, form = np.random.default_rng(seed), FORMATS[name]
    low, high = INTEGERS[name]
    q = rng.integers(low, high + 1, (48, 64))
    q = np.where(rng.random(q.shape) < 0.3, rng.choice([low, high], q.shape), q)
    if name == "q4n":
        q *= there(q * (rng.random(q.shape) < 0.5))
    x = some_integers(rng, tokens, 2, form.activation)
    got = rig.linear(rig.team(target), form, of_integers(form, q), x)
    assert np.array_equal(got, exact_product(form, q, x))


SIGNS = np.array([
    np.ones(32), *(np.where(np.arange(32) // step % 2, -1, 1) for step in (1, 2, 4, 8, 16)),
    *(np.where(np.arange(32) % 8 // 4 == odd, 1, -1) for odd in range(2)),
], np.int64)
"""Columns that pull one way together, or in turns: single ones, pairs, quads, halves."""


@pytest.mark.parametrize("tokens", range(1, 10))
@pytest.mark.parametrize("name", INTEGERS)
def test_products_are_exact_at_the_ends_of_the_range(target: str, name: str, tokens: int) -> None:
    """All 32 columns of every block at their largest, of the same sign or in turns: what is added in 16 bits fits."""
    form = FORMATS[name]
    low, high = INTEGERS[name]
    signs = np.tile(np.concatenate([SIGNS, -SIGNS]), (1, 3))
    q = np.where(signs > 0, high, low)
    if name == "q4n":
        q *= there(np.random.default_rng(tokens).random(q.shape) < 0.5)
    for shift in range(len(signs)):
        rows = np.roll(signs, -shift, axis=0)[:tokens].reshape(tokens, 3, 32)
        for of_rest in (1, -1):  # q and what is left of it pull one way, or against each other
            x = integers(127 * rows, of_rest * 64 * rows, form.activation)
            got = rig.linear(rig.team(target), form, of_integers(form, q), x)
            assert np.array_equal(got, exact_product(form, q, x)), shift
    if name in ("q2", "q3", "q4", "q6"):
        got = rig.linear(rig.team(target), form, of_integers(form, q, minimum=200), x)
        assert np.array_equal(got, exact_product(form, q - 200, x))


@pytest.mark.skipif(len(TESTED) < 2, reason="this machine executes one instruction set only")
@formats
@rig.examples()
@given(seed=seeds, kind=kinds, rows=sizes, columns=sizes, tokens=few_tokens)
def test_instruction_sets_agree(name: str, seed: int, kind: str, rows: int, columns: int, tokens: int) -> None:
    """The operations and their order are the same everywhere: on the machines seen so far, so are the bits."""
    weights = matrix(np.random.default_rng(seed), FORMATS[name], kind, rows, columns)
    x = values(np.random.default_rng(seed + 1), "mixed", (tokens, columns))
    results = []
    for target in TESTED:
        team = rig.team(target)
        results.append(rig.linear(team, weights.form, weights.packed, rig.activations(team, weights.form, x)))
    for y in results[1:]:
        assert np.allclose(y, results[0], rtol=1e-6, atol=1e-30)
