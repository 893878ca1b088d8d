"""What a matrix gets to see: statistics of its inputs over the tokens of a calibration."""

from functools import cached_property

import numpy as np


class Inputs:
    """x: float32 of shape (tokens, columns). All statistics are of columns."""

    def __init__(self, x: np.ndarray) -> None:
        self._x = x

    @cached_property
    def norms(self) -> np.ndarray:
        """Roots of the sums of squares, float32."""
        return np.sqrt(np.einsum("ti,ti->i", self._x, self._x))

    @cached_property
    def mean(self) -> np.ndarray:
        """float32."""
        return self._x.mean(0)

    @cached_property
    def variance(self) -> np.ndarray:
        """float32."""
        return self._x.var(0)

    @cached_property
    def moments(self) -> np.ndarray:
        """Means of x_i * x_j, float32 of shape (columns, columns)."""
        return self._x.T @ self._x / np.float32(len(self._x))
