"""DSnoT (Zhang et al. 2023, "Dynamic Sparse No Training"): pruned weights exchanged for others, without training.

What pruning changes in the mean of a row's product is the sum of weight times mean input over what is pruned. While it
is not near 0, a pruned weight grows back, of those that lessen it the one with the most of that over the variance of
its input, and the weight that is least by Wanda's measure, of those that lessen it too, goes in its place. As in the
authors' code an exchange that would turn the sign ends it; here one that would not lessen the change is left out.
"""

from typing import Any

import numpy as np
from numba import njit

from edgert.converters.threaded import threaded

_CYCLES = 50
"""Exchanges in a row, at most, as in the paper."""
_LEAST = 5e-5
"""What a row's mean product may be off: the authors' 0.1, over the 2,048 tokens that they add up."""


@njit(nogil=True, cache=True, error_model="numpy")
def _exchange(weights: Any, kept: Any, scores: Any, mean: Any, variance: Any, group: int, cycles: int,
              least: Any) -> None:  # pragma: no cover
    """kept: (rows, columns) bool, changed. group: weights are exchanged only within so many columns; 0 for the row."""
    rows, columns = weights.shape
    for i in range(rows):
        untouched = np.ones(columns, np.bool_)
        error = 0.0
        for j in range(columns):
            if not kept[i, j]:
                error += weights[i, j] * mean[j]
        sign = 1.0 if error > 0 else -1.0
        for _ in range(cycles):
            if abs(error) <= least:
                break
            grown, most = -1, 0.0
            for j in range(columns):
                if not kept[i, j] and untouched[j]:
                    lessens = sign * weights[i, j] * mean[j] / max(variance[j], 1e-20)
                    if lessens > most:
                        grown, most = j, lessens
            if grown < 0:
                break
            untouched[grown] = False
            first = grown // group * group if group else 0
            gone, lowest = -1, np.inf
            for j in range(first, first + group if group else columns):
                if kept[i, j] and untouched[j] and scores[i, j] < lowest and (
                        group or sign * weights[i, j] * mean[j] < 0):
                    gone, lowest = j, scores[i, j]
            if gone < 0:
                if group:
                    continue
                break
            after = error + weights[i, gone] * mean[gone] - weights[i, grown] * mean[grown]
            if abs(after) >= abs(error):
                continue
            if sign * after < 0:
                break
            untouched[gone] = False
            kept[i, gone], kept[i, grown] = False, True
            error = after


def regrown(weights: np.ndarray, kept: np.ndarray, scores: np.ndarray, mean: np.ndarray, variance: np.ndarray,
            group: int = 0) -> np.ndarray:
    """What is kept after exchanging; bool of shape (rows, columns), as many in each row (and group) as before.

    weights, scores: float32 of that shape. mean, variance: of the inputs, (columns,). group: columns among which
    weights are exchanged, 0 for all.
    """
    kept = kept.copy()
    threaded(_exchange, (weights, kept, scores), mean.astype(np.float64), variance.astype(np.float64), group, _CYCLES,
             _LEAST)
    return kept


def mean_errors(weights: np.ndarray, kept: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What pruning takes from the mean of each row's product, float64 of shape (rows,)."""
    return np.where(kept, 0, weights.astype(np.float64)) @ mean.astype(np.float64)
