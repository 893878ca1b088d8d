"""Pearson's chi-square test, without SciPy."""

import numpy as np


def assert_frequencies(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Counts have these probabilities: fails once in ten thousand times where they do. Both of shape (n,).

    What is expected fewer than five times is counted together.
    """
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * counts.sum()
    rare = (expected > 0) & (expected < 5)
    counts = np.append(counts[expected >= 5], counts[rare].sum() if rare.any() else [])
    expected = np.append(expected[expected >= 5], expected[rare].sum() if rare.any() else [])
    assert ((counts - expected) ** 2 / expected).sum() < limit(len(counts) - 1)


def limit(freedom: int) -> float:
    """The 99.99th percentile for degrees of freedom (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 3.719 * spread ** 0.5) ** 3
