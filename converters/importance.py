"""Importance: what the second moments of a matrix's inputs (calibration.py) say of how to round its weights.

Where inputs are large an error costs more: so the search for scales is weighed (quantizer.py). Where inputs go together
weights can make up for each other's errors, GPTQ (Frantar et al. 2022): the columns of a row are rounded one after
another, those with the largest inputs first, and what rounding one changes in the row's products is taken from the
columns left. Every block's grid is fixed before.
"""

from typing import Any

import numpy as np
from numba import njit

from edgert.kernels.formats import BLOCK

from .threaded import threaded

_LEAST = 1e-4
"""The least that a column weighs, in means of all."""
_DAMPING = 0.3
"""Added to the diagonal of the moments, in means of it: what a few thousand tokens say of inputs that go together is in
part noise. Of 0.1 to 1 this was best for Qwen2.5-Coder-1.5B's output head, on texts that it was not calibrated with."""
_ROWS_AT_ONCE, _COLUMNS_AT_ONCE = 2048, 128
"""How much is rounded at a time: what that takes of memory, and of the processor's cache."""


@njit(nogil=True, cache=True, error_model="numpy")
def _round_columns(w: Any, zero: Any, step: Any, lowest: Any, q: Any, errors: Any, block_of: Any, factor: Any,
                   top: int) -> None:  # pragma: no cover
    """w: (rows, n) float32, changed. zero: (rows, n) bool, where it is to become 0, or (rows, 0). step, lowest: (rows,
    blocks); block_of: (n,), which block a column is of. factor: (n, n) upper triangle. q: (rows, n) uint8 out. errors:
    (rows, n) float32 out."""
    rows, n = w.shape
    for i in range(rows):
        for j in range(n):
            s, low = step[i, block_of[j]], lowest[i, block_of[j]]
            x = np.float32(0)
            if s > 0:
                x = np.rint(((np.float32(0) if zero.shape[1] and zero[i, j] else w[i, j]) + low) / s)
            x = min(max(x, np.float32(0)), np.float32(top))
            q[i, j] = np.uint8(x)
            error = (w[i, j] - (x * s - low)) / factor[j, j]
            errors[i, j] = error
            for k in range(j + 1, n):
                w[i, k] -= error * factor[j, k]


def inverse_factor(moments: np.ndarray, damping: float) -> np.ndarray:
    """The upper factor of the inverse of moments (columns, columns) to whose diagonal `damping` is added: its row j,
    divided by the diagonal, is what an error in column j asks of those after it."""
    # With H = R R', R an upper triangle, inv(R) is that factor.
    damped = moments[::-1, ::-1].copy()
    damped[np.diag_indices_from(damped)] += damped.dtype.type(damping)
    return np.triu(np.linalg.inv(np.linalg.cholesky(damped)[::-1, ::-1]))


class Importance:
    """Of the columns of a matrix, padded to whole blocks.

    moments: of its inputs, float32 of shape (columns, columns), or (columns,) for squares alone.
    """

    def __init__(self, moments: np.ndarray) -> None:
        padding = [(0, -moments.shape[0] % BLOCK)] * moments.ndim
        moments = np.pad(moments, padding)
        squares = moments if moments.ndim == 1 else np.diag(moments)
        self.usable = bool(np.isfinite(moments).all() and squares.max() > 1e-30)
        """Whether the moments say anything."""
        if not self.usable:
            return
        mean = squares.mean()
        self.weights = np.maximum(squares / mean, np.float32(_LEAST)).reshape(-1, BLOCK)
        """What an error in each column costs: float32 of shape (blocks, BLOCK), on average about 1."""
        self.compensates = moments.ndim == 2
        """Whether it is known which inputs go together."""
        if self.compensates:
            self._order = np.argsort(-squares, kind="stable")
            # Damped so, float32 is enough.
            self._factor = inverse_factor(moments[np.ix_(self._order, self._order)] / mean, _DAMPING)

    def round(self, values: np.ndarray, step: np.ndarray, lowest: np.ndarray, top: int, *,
              keep_zeros: bool = False) -> np.ndarray:
        """Weights to integers 0 to top on the grid step * q - lowest, making up for errors.

        values: float32 (rows, columns). step, lowest: float32 (rows, blocks). keep_zeros: what is 0 stays it, and makes
        up for nothing (SparseGPT's frozen mask, Frantar and Alistarh 2023). Returns uint8 (rows, columns).
        """
        q = np.empty(values.shape, np.uint8)
        for first in range(0, len(values), _ROWS_AT_ONCE):
            some = slice(first, first + _ROWS_AT_ONCE)
            self._round_rows(values[some], step[some], lowest[some], top, q[some], keep_zeros=keep_zeros)
        return q

    def _round_rows(self, values: np.ndarray, step: np.ndarray, lowest: np.ndarray, top: int, q: np.ndarray, *,
                    keep_zeros: bool) -> None:
        w, block_of = values[:, self._order], self._order // BLOCK
        zero = w == 0 if keep_zeros else np.empty((len(w), 0), bool)
        for start in range(0, w.shape[1], _COLUMNS_AT_ONCE):
            now = slice(start, min(start + _COLUMNS_AT_ONCE, w.shape[1]))
            part = np.ascontiguousarray(w[:, now])
            rounded, errors = np.empty(part.shape, np.uint8), np.empty_like(part)
            threaded(_round_columns, (part, zero[:, now], step, lowest, rounded, errors), block_of[now],
                     np.ascontiguousarray(self._factor[now, now]), top)
            q[:, self._order[now]] = rounded
            w[:, now.stop:] -= errors @ self._factor[now, now.stop:]
