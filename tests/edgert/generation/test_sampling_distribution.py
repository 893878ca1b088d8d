"""What is chosen has the distribution that the logits say, and each choice is independent of the others."""

import numpy as np
import pytest
from chi_square import assert_frequencies

from edgert.generation.sampling import Sampler, Sampling

LOGITS = (np.random.default_rng(5).standard_normal(60) * 1.5).astype(np.float32)
RECENT = [7, 7, 30, 2]


def distribution(s: Sampling) -> np.ndarray:
    """The probabilities in float64, after all filters."""
    logits = LOGITS.astype(np.float64)
    for token in set(RECENT):
        logits[token] *= 1 / s.repetition_penalty if logits[token] > 0 else s.repetition_penalty
    powers = np.exp(logits)
    order = np.argsort(-powers)[:s.top_k or None]
    before = (np.cumsum(powers[order]) - powers[order]) / powers[order].sum()
    order = order[(before < s.top_p) & (powers[order] >= s.min_p * powers.max())]
    kept = np.zeros(len(logits))
    kept[order] = np.exp(logits[order] / s.temperature)
    return kept / kept.sum()


@pytest.mark.parametrize(("settings", "kept"), [
    ({}, 60), ({"temperature": 0.7}, 60), ({"temperature": 1.5}, 60), ({"top_k": 10}, 10),
    ({"top_p": 0.8, "temperature": 1.5}, 15), ({"min_p": 0.1, "temperature": 0.7}, 7),
    ({"repetition_penalty": 1.8}, 60),
    ({"top_k": 30, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.3, "temperature": 1.5}, 14)], ids=str)
def test_frequencies_are_the_probabilities(settings: dict[str, float], kept: int) -> None:
    sampling = Sampling(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 11, **settings})
    sampler, expected = Sampler(sampling), distribution(sampling)
    assert np.count_nonzero(expected) == kept
    counts = np.bincount([sampler.choose(LOGITS, RECENT, position).token for position in range(10_000)], minlength=60)
    assert_frequencies(counts, expected)


def test_positions_and_seeds_are_independent() -> None:
    """Pairs of neighbouring positions, of equal positions under neighbouring seeds, and of positions far apart."""
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1])).astype(np.float32)
    few = [Sampler(Sampling(1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)) for seed in (0, 1, 1 << 63)]
    tokens = np.array([[sampler.choose(logits, [], position).token for position in range(8192)] for sampler in few])
    expected = np.outer(np.exp(logits), np.exp(logits)).ravel()
    for first, second in [(tokens[0, 0::2], tokens[0, 1::2]), (tokens[0], tokens[1]), (tokens[0], tokens[2]),
                          (tokens[1, :4096], tokens[1, 4096:])]:
        assert_frequencies(np.bincount(first * 4 + second, minlength=16), expected)


def test_similar_logits_mostly_choose_the_same_token() -> None:
    """At least (1 - d) / (1 + d) of the time, where d is the distance in total variation (Daliri et al. 2024)."""
    other = (LOGITS + np.random.default_rng(6).standard_normal(60) * 0.3).astype(np.float32)
    sampler = Sampler(Sampling(1.0, top_k=0, top_p=1.0, min_p=0.0, seed=3))
    same = np.mean([sampler.choose(LOGITS, [], position).token == sampler.choose(other, [], position).token
                    for position in range(4000)])
    first, second = (np.exp(logits) / np.exp(logits).sum() for logits in (LOGITS, other))
    distance = np.abs(first - second).sum() / 2
    assert (1 - distance) / (1 + distance) - 0.03 < same < 1
