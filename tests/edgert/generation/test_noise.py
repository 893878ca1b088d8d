"""Noise: splitmix64 by another hand, evenly distributed, independent in every argument, never 0 or 1."""

import numpy as np
import pytest
from chi_square import assert_frequencies
from hypothesis import given
from hypothesis import strategies as st

from edgert.generation.noise import _fractions, gumbel, uniform

GRID = [uniform(seed, position, np.arange(64)) for seed in range(16) for position in range(64)]
"""By seed and position, and in each by token."""
CUBE = np.array(GRID).reshape(16, 64, 64)


def splitmix64(state: int) -> int:
    """The reference, in whole numbers: the output for a state that has been counted up already."""
    bits = (1 << 64) - 1
    value = state & bits
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & bits
    value = (value ^ value >> 27) * 0x94D049BB133111EB & bits
    return value ^ value >> 31


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 40), st.integers(0, 1 << 31))
def test_is_splitmix64(seed: int, position: int, token: int) -> None:
    step = 0x9E3779B97F4A7C15
    assert splitmix64(step) == 0xE220A8397B1DCDAF  # the first output for seed 0, as published
    expected = splitmix64(splitmix64(splitmix64(seed + step) + position * step) + token * step)
    for kind in (np.uint32, np.int64):
        (value,) = uniform(seed, position, np.array([token], kind))
        assert value == ((expected >> 12) + 0.5) / 2 ** 52


def test_never_comes_to_zero_or_one() -> None:
    smallest, largest = _fractions(np.array([0, (1 << 64) - 1], np.uint64))
    assert 0 < smallest < 1e-15
    assert 1 - 1e-15 < largest < 1
    assert np.isfinite(-np.log(-np.log([smallest, largest]))).all()


def test_gumbel_is_made_of_uniform() -> None:
    tokens = np.arange(1000).reshape(10, 100)
    np.testing.assert_array_equal(gumbel(3, 5, tokens), -np.log(-np.log(uniform(3, 5, tokens))))


@pytest.mark.parametrize("values", [CUBE, CUBE[0, 0:16], uniform((1 << 64) - 1, 10 ** 6, np.arange(152_000)),
                                    uniform(0, 0, np.arange(0, 1 << 32, 1 << 16))],
                         ids=["all", "one seed", "a vocabulary", "far apart"])
def test_is_evenly_distributed(values: np.ndarray) -> None:
    """Chi-square of 64 parts, and the largest distance from the distribution (Kolmogorov and Smirnov)."""
    assert_frequencies(np.bincount((values.ravel() * 64).astype(int), minlength=64), np.full(64, 1 / 64))
    ordered = np.sort(values.ravel())
    distance = np.abs(ordered - (np.arange(len(ordered)) + 0.5) / len(ordered)).max()
    assert distance * np.sqrt(len(ordered)) < 2.23  # exceeded once in ten thousand


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["seed", "position", "token"])
@pytest.mark.parametrize("apart", [1, 2, 8])
def test_neighbours_are_independent(axis: int, apart: int) -> None:
    """Chi-square of pairs that share no value, in 8 times 8 parts."""
    parts = np.moveaxis((CUBE * 8).astype(int), axis, 0)
    index = np.arange(len(parts))
    first = index[index // apart % 2 == 0]
    pairs = parts[first] * 8 + parts[first + apart]
    assert_frequencies(np.bincount(pairs.ravel(), minlength=64), np.full(64, 1 / 64))
