"""SparseGPT (Frantar & Alistarh 2023): weights are pruned column by column, and those of later columns make up for it.

With U the upper factor of the inverse of the inputs' second moments, pruning a weight of column j costs
(w / U_jj)^2 and asks w / U_jj * U_jk of each later column k. What is pruned is chosen for some columns at a time, of
all rows, or of the groups and blocks of a pattern, from what weights have become until then.
"""

from typing import Any

import numpy as np
from numba import njit

from edgert.converters.importance import inverse_factor
from edgert.converters.threaded import threaded

from .patterns import NOfM, Pattern

_DAMPING = 0.1
"""Added to the diagonal of the moments, in means of it: more than the paper's 0.01, as they come from fewer tokens
(docs/notes/pruning.md)."""
_COLUMNS_AT_ONCE = 128


@njit(nogil=True, cache=True, error_model="numpy")
def _prune_columns(weights: Any, kept: Any, errors: Any, factor: Any, n: int, m: int) -> None:  # pragma: no cover
    """weights: (rows, columns) float32, changed. kept: bool of that shape, and where m is not 0 chosen here: n of each
    m. errors: float32 of that shape, out. factor: (columns, columns) upper triangle."""
    rows, columns = weights.shape
    cost = np.empty(max(m, 1), np.float32)
    for i in range(rows):
        for j in range(columns):
            if m and j % m == 0:
                for k in range(m):
                    part = weights[i, j + k] / factor[j + k, j + k]
                    cost[k] = part * part
                    kept[i, j + k] = True
                for _ in range(m - n):
                    least = -1
                    for k in range(m):
                        if kept[i, j + k] and (least < 0 or cost[k] < cost[least]):
                            least = k
                    kept[i, j + least] = False
            if kept[i, j]:
                errors[i, j] = 0
                continue
            error = weights[i, j] / factor[j, j]
            errors[i, j] = error
            weights[i, j] = 0
            for k in range(j + 1, columns):
                weights[i, k] -= error * factor[j, k]


def compensated(weights: np.ndarray, moments: np.ndarray, amount: float, pattern: Pattern) -> np.ndarray:
    """A matrix pruned, float32 of the same shape. moments: of its inputs, float32 of shape (columns, columns)."""
    w, n, m, at_once = weights.copy(), 0, 0, _COLUMNS_AT_ONCE
    columns = w.shape[1]
    if isinstance(pattern, NOfM):
        n, m = pattern.n, pattern.m
        at_once = max(at_once // m, 1) * m
    mean = np.diag(moments).mean() or 1
    factor = inverse_factor(moments.astype(np.float64) / mean, _DAMPING).astype(np.float32)
    for start in range(0, columns, at_once):
        now = slice(start, min(start + at_once, columns))
        part, here = np.ascontiguousarray(w[:, now]), np.ascontiguousarray(factor[now, now])
        kept = (np.ones(part.shape, bool) if m else
                pattern.kept(np.abs(part) / np.diag(here), amount, by_row=False))
        errors = np.empty_like(part)
        threaded(_prune_columns, (part, kept, errors), here, n, m)
        w[:, now] = part
        w[:, now.stop:] -= errors @ factor[now, now.stop:]
    return w
