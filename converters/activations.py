"""The activations of feed-forward parts (kernels.records.HIDDEN_ACTS), of float32 arrays."""

import math
from collections.abc import Callable

import numpy as np

CLAMP = np.float32(7)
"""Of gates and what they are multiplied by, where the activation is so (kernels/functions.py)."""


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + 0.044715 * x * x * x)))


def _gelu(x: np.ndarray) -> np.ndarray:
    """With erf to 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26)."""
    size = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * size)
    p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * np.float32(1.061405429)))))
    return 0.5 * x * (1 + np.sign(x) * (1 - p * np.exp(-size * size)))


def _clamped(x: np.ndarray) -> np.ndarray:
    x = np.minimum(x, CLAMP)
    return x / (1 + np.exp(np.float32(-1.702) * x))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": _silu, "relu": _relu, "relu2": lambda x: np.square(_relu(x)), "gelu_tanh": _gelu_tanh, "gelu": _gelu,
    "clamped": _clamped}
