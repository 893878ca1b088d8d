"""Neuron groups whose planes are in two places, or of which only the base is there: to the bit what whole groups give,
or what the base stands for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import rig
from hypothesis import given
from hypothesis import strategies as st
from swiglu import (
    PARTS,
    Neurons,
    activation,
    activation_error,
    add_down,
    beside_gate,
    contents,
    hidden,
    in_planes,
    joined,
    neurons,
    one_token,
    without,
)
from weights_for import FORMAT_NAMES, PAIRS, Weights, matrix, product, seeds, values

from edgert.kernels import records
from edgert.kernels.formats import FORMATS, Activation
from edgert.kernels.records import ABSENT

pairs = pytest.mark.parametrize(("up_name", "down_name"), PAIRS)
formats = pytest.mark.parametrize("name", FORMAT_NAMES)
kinds_of_part = st.sampled_from(PARTS)
cut_places = st.sets(st.integers(1, records.SEGMENTS - 1), max_size=3).map(sorted)


class Mixture(NamedTuple):
    """Which groups are absent, in two places, and there as a base only; the others are whole."""

    absent: list[int]
    two: list[int]
    bases: list[int]


def mixture(rng: np.random.Generator, groups: int, *, bases: bool) -> Mixture:
    kinds = rng.choice(4 if bases else 3, groups, p=rng.dirichlet([1, 1, 2, 2] if bases else [1, 1, 2]))
    absent, two, base = (np.flatnonzero(kinds == kind).tolist() for kind in (1, 2, 3))
    return Mixture(absent, two, base)


def absent_in(n: Neurons, absent: Sequence[int]) -> Neurons:
    table = n.table.copy()
    table[list(absent)] = ABSENT
    return n._replace(table=table)


@pairs
@rig.examples(3)
@given(seed=seeds, hidden_size=st.integers(1, 200), groups=st.integers(1, 40), tokens=st.integers(1, 40),
       part=kinds_of_part, threads=st.integers(1, 3), cuts=cut_places)
def test_two_places_are_as_good_as_one(target: str, up_name: str, down_name: str, seed: int, hidden_size: int,
                                       groups: int, tokens: int, part: dict, threads: int, cuts: list[int]) -> None:
    """For many tokens and for one; some groups are whole, and some absent."""
    rng, team = np.random.default_rng(seed), rig.team(target, threads)
    n = neurons(rng, FORMATS[up_name], FORMATS[down_name], hidden_size, groups, "mixed", **part)
    x, y = values(rng, "ordinary", (tokens, hidden_size)), values(rng, "ordinary", (tokens, len(n.down.exact)))
    absent, two, _ = mixture(rng, groups, bases=False)
    mixed, given_x = absent_in(in_planes(rng, n, two=two), absent), rig.activations(team, n.up.form, x)
    whole = without(n, absent)
    h = hidden(team, mixed, given_x, threads=threads)
    there = np.setdiff1d(np.arange(groups), absent)
    expected = hidden(team, whole, given_x, threads=threads)
    blocks, expected_blocks = (each.buffer.bytes.reshape(tokens, groups, -1) for each in (h, expected))
    assert np.array_equal(blocks[:, there], expected_blocks[:, there])
    assert (blocks[:, absent] == 0xFF).all()
    result = add_down(team, whole, expected, y)
    assert np.array_equal(add_down(team, mixed, h, y, threads=threads, cuts=cuts).view(np.int32), result.view(np.int32))
    one = rig.activations(team, n.up.form, x[:1])
    got = one_token(team, mixed, one, y[:1], threads=threads)
    assert np.array_equal(got.view(np.int32), result[:1].view(np.int32))


def test_segments_of_many_tokens_and_more_than_a_thread_takes_at_once(target: str) -> None:
    """Phases of every length, and tokens beyond those that go through several tiles together."""
    rng, team = np.random.default_rng(5), rig.team(target, 2)
    n = neurons(rng, FORMATS["q4"], FORMATS["q6"], 130, 100)
    x, y = values(rng, "ordinary", (70, 130)), values(rng, "ordinary", (70, len(n.down.exact)))
    given_x = rig.activations(team, n.up.form, x)
    mixed = in_planes(rng, n, two=range(0, 100, 2))
    h = hidden(team, mixed, given_x, threads=2)
    assert np.array_equal(h.buffer.bytes, hidden(team, n, given_x, threads=2).buffer.bytes)
    expected = add_down(team, n, h, y)
    for cuts in ([], range(1, 48), [1], [47], [5, 6, 30]):
        assert np.array_equal(add_down(team, mixed, h, y, threads=2, cuts=list(cuts)), expected)


@pairs
@rig.examples(3)
@given(seed=seeds, hidden_size=st.integers(1, 200), groups=st.integers(1, 20), gated=st.booleans(),
       threads=st.integers(1, 3))
def test_join_gives_the_whole_groups(target: str, up_name: str, down_name: str, seed: int, hidden_size: int,
                                     groups: int, gated: bool, threads: int) -> None:
    rng = np.random.default_rng(seed)
    n = neurons(rng, FORMATS[up_name], FORMATS[down_name], hidden_size, groups, "mixed", gated=gated)
    assert np.array_equal(joined(rig.team(target, threads), rng, n), contents(n))


# --- bases alone -----------------------------------------------------------------------------------------------------


def neurons_of(groups: Sequence[int]) -> np.ndarray:
    return (32 * np.asarray(groups, np.int64)[:, None] + np.arange(32)).ravel()


def coarse(weights: Weights, *, rows: Sequence[int] = (), columns: Sequence[int] = ()) -> Weights:
    """A matrix of which these rows, or columns, are what their base planes stand for."""
    base, parts = weights.base, []
    for of, of_base in zip((weights.exact, weights.positive, weights.negative),
                           (base.exact, base.positive, base.negative), strict=True):
        parts.append(part := of.copy())
        part[neurons_of(rows)] = of_base[neurons_of(rows)]
        part[:, neurons_of(columns)] = of_base[:, neurons_of(columns)]
    return weights._replace(exact=parts[0], positive=parts[1], negative=parts[2])


class Bound(NamedTuple):
    """Values in float64, and how far float32 may be from them."""

    exact: np.ndarray
    error: np.ndarray


def times(weights: Weights, x: np.ndarray) -> Bound:
    """`product`, of weights of which some have an operation more in each block: adding the middle."""
    exact, error = product(weights, x)
    return Bound(exact, 2 * error)


def activated(n: Neurons, x: np.ndarray, bases: Sequence[int]) -> Bound:
    """act(gate x) * (up x), or act(up x + bias), as in test_feed_forward."""
    up = times(coarse(n.up, rows=bases), x)
    if n.gate is None:
        assert n.up_bias is not None
        gate = Bound(up.exact + n.up_bias, up.error + 2**-23 * np.abs(up.exact + n.up_bias))
        up = Bound(np.ones_like(up.exact), np.zeros_like(up.error))
    else:
        gate = times(coarse(n.gate, rows=bases), x)
        up = Bound(beside_gate(n, up.exact), up.error + 2**-23 * np.abs(beside_gate(n, up.exact)))
    act, act_error = activation(n, gate.exact), activation_error(n, *gate)
    error = act_error * (np.abs(up.exact) + up.error) + (np.abs(act) + act_error) * up.error + 1e-37
    return Bound(act * up.exact, error + 2**-23 * np.abs(act * up.exact))


@pairs
@rig.examples(4)
@given(seed=seeds, hidden_size=st.integers(1, 200), groups=st.integers(1, 60), part=kinds_of_part,
       threads=st.integers(1, 3))
def test_bases_alone_against_float64(target: str, up_name: str, down_name: str, seed: int, hidden_size: int,
                                     groups: int, part: dict, threads: int) -> None:
    """Mixed with whole groups, with such in two places, and with such that are absent."""
    rng, team = np.random.default_rng(seed), rig.team(target, threads)
    n = neurons(rng, FORMATS[up_name], FORMATS[down_name], hidden_size, groups, **part)
    absent, two, bases = mixture(rng, groups, bases=True)
    x = rig.activations(team, n.up.form, values(rng, "ordinary", (1, hidden_size)))
    y = values(rng, "ordinary", (1, len(n.down.exact)))
    h = activated(n, x.values, bases)
    h.exact.reshape(groups, 32)[absent] = h.error.reshape(groups, 32)[absent] = 0
    blocks = h.exact.reshape(groups, 32)
    # What down meets is rounded to 8 bits, or to 15, of the largest of its block.
    steps = {Activation.QUANTIZED: 127, Activation.FINE: 127 * 128, Activation.FLOAT: np.inf}[n.down.form.activation]
    largest = (np.abs(blocks) + h.error.reshape(groups, 32)).max(1, keepdims=True)
    rounding = np.repeat(largest / steps, 32, axis=1).reshape(1, -1)
    down = coarse(n.down, columns=bases)
    result = times(down, h.exact)
    sizes = np.abs(down.positive) + np.abs(down.negative)
    allowed = result.error + (h.error + rounding) @ sizes.T * 1.01
    if n.down_bias is not None:
        result = Bound(result.exact + n.down_bias, result.error)
        allowed += 2**-22 * np.abs(n.down_bias)
    got = one_token(team, absent_in(in_planes(rng, n, two=two, bases=bases), absent), x, y, threads=threads)
    assert (np.abs(got - (y + result.exact)) <= allowed + 2**-22 * (np.abs(y) + np.abs(result.exact))).all()


@formats
@rig.examples(6)
@given(seed=seeds, hidden_size=st.integers(1, 200), groups=st.integers(1, 60), threads=st.integers(1, 3))
def test_bases_of_down_alone_against_float64(target: str, name: str, seed: int, hidden_size: int, groups: int,
                                             threads: int) -> None:
    """With gate and up that have no details, what down meets is known to the bit."""
    rng, team = np.random.default_rng(seed), rig.team(target, threads)
    n = neurons(rng, FORMATS["f32"], FORMATS[name], hidden_size, groups)
    bases = mixture(rng, groups, bases=True).bases
    x = rig.activations(team, n.up.form, values(rng, "ordinary", (1, hidden_size)))
    y = values(rng, "ordinary", (1, len(n.down.exact)))
    h = hidden(team, n, x, threads=threads)
    result = times(coarse(n.down, columns=bases), h.values)
    got = one_token(team, in_planes(rng, n, bases=bases), x, y, threads=threads)
    assert (np.abs(got - (y + result.exact)) <= result.error + 2**-23 * (np.abs(y) + np.abs(result.exact))).all()


@rig.examples(6)
@given(seed=seeds, hidden_size=st.integers(1, 200), groups=st.integers(1, 60), threads=st.integers(1, 3))
def test_the_middle_of_8_bits_is_a_detail_like_others(target: str, seed: int, hidden_size: int, groups: int,
                                                      threads: int) -> None:
    """So a base alone is, to the bit, a whole group with that detail."""
    rng, team = np.random.default_rng(seed), rig.team(target, threads)
    n = neurons(rng, FORMATS["q8"], FORMATS["q8"], hidden_size, groups)
    middle = neurons(np.random.default_rng(seed), FORMATS["q8"], FORMATS["q8"], hidden_size, groups)
    for codes in _codes_of(middle):
        codes[:] = codes & 0xF0 | 8
    x = rig.activations(team, n.up.form, values(rng, "ordinary", (1, hidden_size)))
    y = values(rng, "ordinary", (1, len(n.down.exact)))
    bases = range(groups)
    got = one_token(team, in_planes(rng, n, bases=bases), x, y, threads=threads)
    assert np.array_equal(got.view(np.int32), one_token(team, middle, x, y, threads=threads).view(np.int32))


def _codes_of(n: Neurons) -> list[np.ndarray]:
    """Of groups of q8: the 512 bytes of each block, writable."""
    return [n.memory.bytes[:, at:at + 512] for at in range(0, n.memory.bytes.shape[1], 544)]


@formats
@rig.examples(6)
@given(seed=seeds, kind=st.sampled_from(["ordinary", "mixed", "large"]))
def test_what_a_base_stands_for(name: str, seed: int, kind: str) -> None:
    """It is no farther from the whole than half of what its detail can be."""
    form = FORMATS[name]
    weights = matrix(np.random.default_rng(seed), form, kind, 33, 70)
    if weights.numbers is None or not form.detail_bytes:
        assert weights.base is weights
        return
    q = weights.numbers.q.astype(np.float64)
    step = np.abs(weights.positive / np.where(q == 0, 1, q))
    far = np.abs(weights.base.positive - weights.positive)[q != 0]
    assert (far <= form.middle * (1 + 1e-9) * step[q != 0]).all()
    assert np.array_equal(weights.base.negative, weights.negative)
