"""How the neurons of a sparse model stand in a bundle: one after another, each with what it has of every matrix.

In a sparse model (Config.sparse) most neurons are zero for a token, and the first matrix of the feed-forward part says
which. A neuron is a *row-column bundle* ("LLM in a flash", Alizadeh et al. 2023): its row of the up projection, where a
gate decides, then its column of the down projection. Where a predictor says which neurons to compute, and not that
matrix, its row of that comes before. All are vectors of hidden_size weights, coded along themselves, so that a single
neuron can be read and computed. As few as fill a page or two of a disk are a *unit*: the fewer there are in one, the
less is kept and read that is not needed (docs/notes/sparse.md).

A vector of so many blocks of 32 weights, the last one filled up with zeros, is:

- q4: float32 scale D and minimum M; a uint8 s, then a uint8 m, of every block; 16 bytes of nibbles a block, byte i with
  weight i low and weight i + 16 high. A weight is D s q - M m;
- q8: a bfloat16 s of every block; 32 bytes a block, q + 128. A weight is s q;
- f16, f32: the weights.
"""

from typing import NamedTuple

import numpy as np

from .formats import BLOCK, Quantized, bf16_bytes

PAGE = 4096
"""Bytes."""
_MOST_PAGES, _FILLED = 6, 0.75
"""A unit has so many pages at most, unless a neuron has more: the fewest of which so much is filled, or if none is, the
number that is filled best."""
ROW_FORMATS = {"q4": "q4", "q6": "q8", "q8": "q8", "f16": "f16", "f32": "f32", "q2": "q4", "q3": "q4", "ternary": "f32",
               "q4n": "q4"}
"""In which of these a matrix stands that has some weight format elsewhere."""


class NeuronUnits(NamedTuple):
    """The units of a layer. neurons: in each. neuron_bytes, deciding_bytes, up_bytes: of a neuron, of its row of the
    matrix that decides, and of its up row (0 where there is none). unit_bytes: with what fills up the last page."""

    neurons: int
    neuron_bytes: int
    deciding_bytes: int
    up_bytes: int
    unit_bytes: int

    def count(self, neurons: int) -> int:
        """How many units hold so many neurons."""
        return -(-neurons // self.neurons)


def row_bytes(form: str, columns: int) -> int:
    """Bytes of a vector of so many weights."""
    blocks = -(-columns // BLOCK)
    return {"q4": 8 + 18 * blocks, "q8": 34 * blocks, "f16": 64 * blocks, "f32": 128 * blocks}[form]


def neuron_units(hidden_size: int, up: str, down: str, *, gated: bool, predicted: bool = False) -> NeuronUnits:
    """The units of a layer whose vectors are in these formats. predicted: with rows of the matrix that decides."""
    deciding_bytes, up_bytes = (row_bytes(up, hidden_size) if there else 0 for there in (predicted, gated))
    neuron = deciding_bytes + up_bytes + row_bytes(down, hidden_size)
    least = -(-neuron // PAGE)

    def filled(pages: int) -> float:
        return pages * PAGE // neuron * neuron / (pages * PAGE)

    some = range(least, max(_MOST_PAGES, least) + 1)
    pages = next((pages for pages in some if filled(pages) >= _FILLED), max(some, key=filled))
    return NeuronUnits(pages * PAGE // neuron, neuron, deciding_bytes, up_bytes, pages * PAGE)


def pack_rows(form: str, weights: Quantized | np.ndarray) -> np.ndarray:
    """Vectors in this layout: uint8 of shape (rows, row_bytes). `weights` has whole blocks; it is a float32 array for
    f16 and f32, otherwise a `Quantized`."""
    if isinstance(weights, np.ndarray):
        kind = np.float16 if form == "f16" else np.float32
        return np.ascontiguousarray(weights, kind).view(np.uint8)
    rows, columns = weights.q.shape
    if form == "q8":
        return np.concatenate([bf16_bytes(weights.s), weights.q.view(np.uint8) ^ 0x80], 1)
    assert weights.m is not None and weights.scale is not None and weights.minimum is not None
    halves = weights.q.reshape(rows, columns // BLOCK, 2, BLOCK // 2)
    codes = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(rows, -1)
    header = np.stack([weights.scale, weights.minimum], 1).astype(np.float32).view(np.uint8)
    return np.concatenate([header, weights.s, weights.m, codes], 1)


def unpack_rows(form: str, rows: np.ndarray) -> np.ndarray:
    """The weights of vectors in this layout: float32 of shape (rows, columns), of whole blocks."""
    if form in ("f16", "f32"):
        return np.ascontiguousarray(rows).view(np.float16 if form == "f16" else np.float32).astype(np.float32)
    if form == "q8":
        blocks = rows.shape[1] // 34
        bits = np.ascontiguousarray(rows[:, :2 * blocks]).view(np.uint16).astype(np.uint32) << np.uint32(16)
        q = rows[:, 2 * blocks:].astype(np.float32) - 128
        return q * np.repeat(bits.view(np.float32), BLOCK, 1)
    blocks = (rows.shape[1] - 8) // 18
    header = np.ascontiguousarray(rows[:, :8]).view(np.float32)
    s, m = rows[:, 8:8 + blocks].astype(np.float32), rows[:, 8 + blocks:8 + 2 * blocks].astype(np.float32)
    codes = rows[:, 8 + 2 * blocks:].reshape(len(rows), blocks, BLOCK // 2)
    q = np.concatenate([codes & 15, codes >> 4], 2).astype(np.float32)
    values = q * (header[:, :1] * s)[:, :, None] - (header[:, 1:] * m)[:, :, None]
    return np.ascontiguousarray(values).reshape(len(rows), -1)
