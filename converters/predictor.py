"""Predictors: which neurons of a sparse layer are active, from a product of low rank in place of the matrix that says
so exactly.

Deja Vu (Liu et al. 2023) and "LLM in a flash" (Alizadeh et al. 2023, section 3.1) train a pair of small matrices for
each layer. Here they are computed: the products z = G x of the matrix that decides have principal components over the
calibration text, V, and what these keep of z is V V' G x. So the first matrix is V' G, the second V, and no matrix of
this rank foresees the products better in the mean square. What is left of each neuron's product is taken to be normally
distributed: so the second matrix's rows and the biases are divided by its standard deviation, a score is how many of
those the product is expected to be above zero, and a threshold is a probability.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_MORE, _ROUNDS = 32, 3
"""Components beside those that are wanted, and rounds, of the subspace iteration that finds them (Halko et al. 2011).
"""
_LEAST = 1e-4
"""Of a product's root mean square; less is not taken to be uncertain."""


class Predictor(NamedTuple):
    """A layer's. into: float32 (rank, hidden_size). out: float32 (neurons, rank). bias: float32 (neurons,)."""

    into: np.ndarray
    out: np.ndarray
    bias: np.ndarray

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Of every neuron, for inputs (tokens, hidden_size): standard deviations that its product is above zero."""
        made: np.ndarray = (x @ self.into.T) @ self.out.T + self.bias
        return made


def fitted(products: np.ndarray, bias: np.ndarray | None, parts: Iterable[np.ndarray], rank: int) -> Predictor:
    """The predictor of a layer. products: float32 (tokens, neurons), of the matrix that decides, without biases. bias:
    its biases. parts: its rows, some at a time."""
    components = principal(products, rank)
    into, first = np.zeros((components.shape[1], 0), np.float32), 0
    for rows in parts:
        if not first:
            into = np.zeros((components.shape[1], rows.shape[1]), np.float32)
        into += components[first:first + len(rows)].T @ rows
        first += len(rows)
    kept = products @ components
    left, whole = np.empty(products.shape[1], np.float32), np.empty(products.shape[1], np.float32)
    for first in range(0, products.shape[1], rank):
        some = slice(first, first + rank)
        of = products[:, some]
        whole[some] = np.square(of).mean(0)
        left[some] = np.square(of - kept @ components[some].T).mean(0)
    deviation = np.sqrt(np.maximum(left, np.square(np.float32(_LEAST)) * whole + np.float32(1e-30)))
    offsets = np.zeros(len(deviation), np.float32) if bias is None else bias
    missing = rank - components.shape[1]  # of a text that is very short
    return Predictor(np.pad(into, ((0, missing), (0, 0))),
                     np.pad(components / deviation[:, None], ((0, 0), (0, missing))), offsets / deviation)


def principal(values: np.ndarray, rank: int) -> np.ndarray:
    """The first principal components of rows, about zero: orthonormal float32 columns (columns, rank), or fewer where
    there are not as many rows."""
    count = min(rank + _MORE, *values.shape)
    basis = np.random.default_rng(0).standard_normal((values.shape[1], count), np.float32)
    for _ in range(_ROUNDS):
        basis = np.linalg.qr(values.T @ np.linalg.qr(values @ basis)[0])[0]
    found = np.linalg.svd(values @ basis, full_matrices=False)[2]
    kept: np.ndarray = np.ascontiguousarray((basis @ found.T)[:, :min(rank, count)])
    return kept
