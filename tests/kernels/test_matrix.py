"""y = W x for every weight format."""

import numpy as np
import pytest
import rig
from guarded import Buffer
from hypothesis import given
from hypothesis import strategies as st
from weights_for import FORMAT_NAMES, kinds, matrix, product, seeds, values

from edgert.kernels.formats import FORMATS, QUANTIZED_BLOCK, Quantized, pack
from edgert.kernels.simd.target import executable_targets

TARGETS = [t.name for t in executable_targets()]
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
    """By slabs, for the number of rows that comes from `selected`, not from `tokens`."""
    rng, team = np.random.default_rng(seed), rig.team(target, threads)
    weights = matrix(rng, FORMATS[name], "ordinary", rows, 70)
    x = rig.activations(team, weights.form, values(rng, "ordinary", (6, 70)))
    every = rig.linear(team, weights.form, weights.packed, x)
    for selected in (1, 2, 5):
        got, ended = rig.slabs(team, weights.form, weights.packed, x, selected, rig.slab_addresses(weights.packed))
        assert ended and np.array_equal(got, every[:selected])


def integers(rng: np.random.Generator, tokens: int, blocks: int) -> rig.Activations:
    """Activation blocks of scale 1, also as 8-bit weights see them, many of them at the ends of the range."""
    def extreme(most: int) -> np.ndarray:
        numbers = rng.integers(-most, most + 1, (tokens, blocks, 32))
        return np.where(rng.random(numbers.shape) < 0.5, np.sign(numbers) * most, numbers)

    raw = np.zeros((tokens, blocks), rig.QUANTIZED)
    raw["q"], raw["r"] = extreme(127), extreme(64)
    raw["scale"], raw["fine_scale"] = 1, 1
    raw["scaled_sum"] = raw["q"].sum(2, dtype=np.int64)
    raw["fine_sum"] = (128 * raw["q"].astype(np.int64) + raw["r"]).sum(2)
    buffer = Buffer(tokens, QUANTIZED_BLOCK * blocks)
    buffer.bytes[:] = raw.view(np.uint8).reshape(tokens, -1)
    return rig.Activations(buffer, integer=True)


@pytest.mark.parametrize("name", ["q4", "q6", "q8"])
@rig.examples(20)
@given(seed=seeds, tokens=few_tokens)
def test_integer_dot_products_are_exact(target: str, name: str, seed: int, tokens: int) -> None:
    """With scales of 1 the result is an integer, below 2**24 but for 8-bit weights, and float32 must have it."""
    rng, form = np.random.default_rng(seed), FORMATS[name]
    tall, wide = 48, 64
    low, high = {"q4": (0, 15), "q6": (0, 63), "q8": (-127, 127)}[name]
    q = rng.integers(low, high + 1, (tall, wide))
    q = np.where(rng.random(q.shape) < 0.3, rng.choice([low, high], q.shape), q)
    ones, zeros = np.ones((tall, 2)), np.zeros((tall, 2))
    one = np.ones(tall, np.float32)
    numbers = (Quantized(q.astype(np.int8), ones.astype(np.float32)) if name == "q8" else
               Quantized(q.astype(np.uint8), ones.astype(np.uint8), zeros.astype(np.uint8), one, one))
    x = integers(rng, tokens, 2)
    y = rig.linear(rig.team(target), form, pack(form, numbers), x)
    if form.fine:
        exact = np.stack([(128 * x.q[:, i] + x.r[:, i]) @ q[:, 32 * i:32 * i + 32].T for i in range(2)])
        exact = exact.astype(np.float32)  # of each block; then their sum
        assert np.array_equal(y, exact[0] + exact[1])
        return
    assert np.array_equal(y, x.q.reshape(tokens, wide) @ q.T)


@pytest.mark.skipif(len(TARGETS) < 2, reason="this machine executes one instruction set only")
@formats
@rig.examples()
@given(seed=seeds, kind=kinds, rows=sizes, columns=sizes, tokens=few_tokens)
def test_instruction_sets_agree(name: str, seed: int, kind: str, rows: int, columns: int, tokens: int) -> None:
    """The operations and their order are the same everywhere: on the machines seen so far, so are the bits."""
    weights = matrix(np.random.default_rng(seed), FORMATS[name], kind, rows, columns)
    x = values(np.random.default_rng(seed + 1), "mixed", (tokens, columns))
    results = []
    for target in TARGETS:
        team = rig.team(target)
        results.append(rig.linear(team, weights.form, weights.packed, rig.activations(team, weights.form, x)))
    for y in results[1:]:
        assert np.allclose(y, results[0], rtol=1e-6, atol=1e-30)
