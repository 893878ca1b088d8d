"""The grids that the blocks of GGUF's types stand on: weight = scale * q - minimum for 32 weights, as in a bundle.

A type that is not here has none: two scales for 32 weights (Q2_K, Q3_K, Q6_K, IQ1_M, IQ2_XS, IQ2_S, NVFP4), or values
at uneven distances (IQ2_XXS, IQ4_NL, IQ4_XS). Those of IQ3_XXS are even but for the largest: what its weights differ by
from the grid is 1.8 % of them (root mean square). Layouts: ggml's ggml-common.h and ggml-quants.c, as gguf.quants has
them.
"""

from collections.abc import Callable

import numpy as np
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import MXFP4, Q4_K

Columns = tuple[np.ndarray, np.ndarray]
"""Scales and minima: each float32 of shape (blocks, groups of 32 in a block). A scale may be negative."""


def grid_of(kind: Type, blocks: np.ndarray) -> tuple[Columns, int] | None:
    """Scales, minima, and the largest q of blocks, uint8 of shape (blocks, bytes); None where the type has no grid."""
    if kind not in _GRIDS:
        return None
    of_blocks, top = _GRIDS[kind]
    return of_blocks(blocks), top


def _halves(columns: np.ndarray) -> np.ndarray:
    """Two bytes per block as float32 of shape (blocks, 1)."""
    return np.ascontiguousarray(columns).view(np.float16).astype(np.float32)


def _around_zero(d: np.ndarray, zero: float) -> Columns:
    """d * (q - zero)."""
    return d, np.float32(zero) * d


def _with_minimum(blocks: np.ndarray) -> Columns:
    return _halves(blocks[:, :2]), -_halves(blocks[:, 2:4])


def _k(blocks: np.ndarray) -> Columns:
    scales, minimums = Q4_K.get_scale_min(blocks[:, 4:16])
    return _halves(blocks[:, :2]) * scales, _halves(blocks[:, 2:4]) * minimums


def _ternary(blocks: np.ndarray) -> Columns:
    """TQ1_0 and TQ2_0: d * (-1, 0 or 1), one d for 256 weights. TQ2_0 has a code for 2, too."""
    return _around_zero(np.repeat(_halves(blocks[:, -2:]), 8, 1), 1)


def _iq1_s(blocks: np.ndarray) -> Columns:
    """d * (-1, 0 or 1, and an eighth more or less)."""
    high = np.ascontiguousarray(blocks[:, 34:]).view(np.uint16)
    scale = _halves(blocks[:, :2]) * (2 * (high >> 12 & 7) + 1)
    return scale, scale * np.where(high & 0x8000, np.float32(1.125), np.float32(0.875))


def _iq3_xxs(blocks: np.ndarray) -> Columns:
    """d * (4, 12, 20 ... 52 or 62) of either sign."""
    high = (np.ascontiguousarray(blocks[:, 66:]).view(np.uint32) >> 28).astype(np.float32)
    return _around_zero(_halves(blocks[:, :2]) * (high + np.float32(0.5)) * np.float32(8 / 2), 7.5)


def _iq3_s(blocks: np.ndarray) -> Columns:
    """d * (1, 3, 5 ... 15) of either sign."""
    scales = np.stack([blocks[:, 106:] & 15, blocks[:, 106:] >> 4], 2).reshape(len(blocks), 8)
    return _around_zero(_halves(blocks[:, :2]) * (1 + 2 * scales.astype(np.float32)) * 2, 7.5)


def _mxfp4(blocks: np.ndarray) -> Columns:
    """A power of two times 0, 1, 2, 3, 4, 6, 8 or 12 of either sign."""
    return _around_zero(MXFP4.e8m0_to_fp32_half(blocks[:, :1]), 12)


_GRIDS: dict[Type, tuple[Callable[[np.ndarray], Columns], int]] = {
    Type.TQ1_0: (_ternary, 2),
    Type.TQ2_0: (_ternary, 3),
    Type.IQ1_S: (_iq1_s, 2),
    Type.IQ3_XXS: (_iq3_xxs, 15),
    Type.IQ3_S: (_iq3_s, 15),
    Type.Q4_0: (lambda blocks: _around_zero(_halves(blocks[:, :2]), 8), 15),
    Type.Q4_1: (_with_minimum, 15),
    Type.Q4_K: (_k, 15),
    Type.MXFP4: (_mxfp4, 24),
    Type.Q5_0: (lambda blocks: _around_zero(_halves(blocks[:, :2]), 16), 31),
    Type.Q5_1: (_with_minimum, 31),
    Type.Q5_K: (_k, 31),
}
"""For each type what gives its blocks' scales and minima, and the largest q."""
