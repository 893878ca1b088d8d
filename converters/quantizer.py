"""Choosing the integers and scales of a quantized matrix: a search for the scales, block by block.

4 and 6 bits: scale and minimum of every 32 weights are searched as in llama.cpp's `make_qkx2_quants`: for a range of
trial scales, round, then solve for the scale and minimum that fit best in the weighted least squares sense, and keep
the trial with the least error. Then scale and minimum are put on their row's 8-bit grid and the weights rounded again.
Where it is known what a matrix's inputs are like, errors are weighed by that, and made up for (importance.py).
8 bits: a scale is searched around max / 127. A source that already stands on a grid of so few values keeps it.
2 and 3 bits: as 4. 4 bits of which at least 2 in 4 are zero (q4n): likewise a scale alone, and what is zero stays so.
So of block-sparse weights (q4b). Ternary: what stands on it already, to the bit; nothing else.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from edgert.errors import SourceError
from edgert.kernels.block_packing import packed_loosely, tiles_of_size
from edgert.kernels.formats import BLOCK, FORMATS, TILE, Activation, Format, Quantized, pack, round_bf16
from edgert.kernels.neuron_rows import pack_rows

from .importance import Importance
from .source import Grid, SourceTensor
from .threaded import threaded

_TRIALS, _SPAN = 21, 1.0
"""Trial scales reach from `_SPAN` steps more than the range of the weights needs to as many fewer."""


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _weighted_error(x: Any, weight: Any, inverse: Any, low: Any, top: int, s: Any, m: Any) -> Any:  # pragma: no cover
    error = np.float32(0)
    for j in range(32):
        q = min(max(np.rint((x[j] - low) * inverse), np.float32(0)), np.float32(top))
        difference = s * q + m - x[j]
        error += weight[j] * difference * difference
    return error


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _search_affine(rows: Any, scale: Any, minimum: Any, importance: Any, top: int) -> None:  # pragma: no cover
    """rows: (n, 32) float32; scale, minimum: (n,) float32 out; weights are 0..top. weight = scale * q - minimum.

    importance: (blocks, 32), what an error costs in each column of a row of so many blocks, the first of `rows` being
    at the start of one; or (0, 32): then an error costs more in large weights, which are large for a reason.
    """
    weight, x = np.empty(32, np.float32), np.empty(32, np.float32)
    blocks = importance.shape[0]
    for i in range(rows.shape[0]):
        low, high = np.float32(0), np.float32(0)
        for j in range(32):
            low, high = min(low, rows[i, j]), max(high, rows[i, j])
        if max(high, -low) < 1e-30:
            scale[i], minimum[i] = 0, 0
            continue
        # Divided by a power of two, which changes no digit, so that no product of four overflows.
        unit = np.float32(math.ldexp(1.0, math.frexp(max(high, -low))[1]))
        low, high = low / unit, high / unit
        squares = np.float32(0)
        for j in range(32):
            x[j] = rows[i, j] / unit
            squares += x[j] * x[j]
        mean = np.float32(np.sqrt(squares / 32))
        sum_w, sum_x = np.float32(0), np.float32(0)
        for j in range(32):
            weight[j] = importance[i % blocks, j] if blocks else mean + abs(x[j])
            sum_w += weight[j]
            sum_x += weight[j] * x[j]
        best_s, best_m = (high - low) / np.float32(top), low
        best = _weighted_error(x, weight, np.float32(1) / best_s, low, top, best_s, best_m)
        for trial in range(_TRIALS):
            inverse = np.float32((top - _SPAN + 2 * _SPAN * trial / (_TRIALS - 1)) / (high - low))
            sum_l, sum_l2, sum_xl = np.float32(0), np.float32(0), np.float32(0)
            for j in range(32):
                q = min(max(np.rint((x[j] - low) * inverse), np.float32(0)), np.float32(top))
                sum_l += weight[j] * q
                sum_l2 += weight[j] * q * q
                sum_xl += weight[j] * q * x[j]
            determinant = sum_w * sum_l2 - sum_l * sum_l
            if determinant <= np.float32(1e-5) * sum_w * sum_l2:  # (nearly) all q alike: what is left is rounding
                continue
            s = (sum_w * sum_xl - sum_x * sum_l) / determinant
            m = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
            if m > 0:
                m = np.float32(0)
                s = sum_xl / sum_l2
            if s <= 0:
                continue
            error = _weighted_error(x, weight, inverse, low, top, s, m)
            if error < best:
                best, best_s, best_m = error, s, m
        scale[i], minimum[i] = best_s * unit, -best_m * unit


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _search_symmetric(rows: Any, scale: Any) -> None:  # pragma: no cover
    """rows: (n, 32) float32; scale: (n,) float32 out, exact in bfloat16; weights are -127..127."""
    trial_scale = np.empty(1, np.float32)
    bits = trial_scale.view(np.uint32)
    for i in range(rows.shape[0]):
        largest = np.float32(0)
        for j in range(32):
            largest = max(largest, abs(rows[i, j]))
        if largest < 1e-30:
            scale[i] = 0
            continue
        over = np.float32(math.ldexp(1.0, -math.frexp(largest)[1]))  # so that no square overflows
        best = np.float32(np.inf)
        trial_scale[0] = largest / np.float32(127)
        base = (bits[0] >> 16) - 2
        for step in range(6):
            bits[0] = np.uint32((base + step) << 16)
            s = trial_scale[0]
            inverse, error = np.float32(1) / s, np.float32(0)
            for j in range(32):
                q = min(max(np.rint(rows[i, j] * inverse), np.float32(-127)), np.float32(127))
                difference = (q * s - rows[i, j]) * over
                error += difference * difference
            if error < best:
                best = error
                scale[i] = s


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _search_kept(rows: Any, scale: Any, importance: Any) -> None:  # pragma: no cover
    """As `_search_affine` without minima: weights are -8..7, and errors in what is 0, and stays it, count nothing."""
    blocks, weight, x = importance.shape[0], np.empty(32, np.float32), np.empty(32, np.float32)
    for i in range(rows.shape[0]):
        largest, squares = np.float32(0), np.float32(0)
        for j in range(32):
            largest = max(largest, abs(rows[i, j]))
        if largest < 1e-30:
            scale[i] = 0
            continue
        unit = np.float32(math.ldexp(1.0, math.frexp(largest)[1]))
        largest /= unit
        for j in range(32):
            x[j] = rows[i, j] / unit
            squares += x[j] * x[j]
        mean = np.float32(np.sqrt(squares / 32))
        for j in range(32):
            weight[j] = importance[i % blocks, j] if blocks else mean + abs(x[j])
        best = np.float32(-1)
        for trial in range(_TRIALS):
            inverse = np.float32(_LEAST_STEPS + _MORE_STEPS * trial / (_TRIALS - 1)) / largest
            sum_q2, sum_xq = np.float32(0), np.float32(0)
            for j in range(32):
                q = min(max(np.rint(x[j] * inverse), np.float32(-8)), np.float32(7))
                sum_q2 += weight[j] * q * q
                sum_xq += weight[j] * x[j] * q
            # With the scale that fits best, sum_xq / sum_q2, the error is that of zeros less sum_xq^2 / sum_q2.
            if sum_q2 > 0 and sum_xq > 0 and sum_xq * sum_xq > best * sum_q2:
                best = sum_xq * sum_xq / sum_q2
                scale[i] = sum_xq / sum_q2 * unit


_LEAST_STEPS, _MORE_STEPS = 5.0, 4.0
"""Trial scales of q4n put the largest weight between 5 and 9 steps from zero."""

TOPS = {"q2": 3, "q3": 7, "q4": 15, "q6": 63}
"""The largest q of the formats that have a grid."""

LARGEST = {"f32": float(np.finfo(np.float32).max), "f16": 65504.0, "q8": 1e30, "q6": 1e30, "q4": 1e30,
           "q3": 1e30, "q2": 1e30, "q4n": 1e30, "q4b": 1e30, "ternary": 1e30}
"""The largest weight that each format can hold; where scales are searched, the largest that they are searched for."""


def on_grid(tensor: SourceTensor, form: str) -> bool:
    """Whether a tensor stands on a grid that a format keeps. Raises SourceError."""
    grid = tensor.grid(0, 0)
    return grid is not None and grid.top <= TOPS.get(form, 0)


def _on_row_grid(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, blocks) float32 >= 0 to uint8 steps and (rows,) row scales, exact in bfloat16."""
    largest = values.max(1)
    unit = round_bf16(largest / np.float32(255), up=True)
    # Where all are whole multiples of one power of two, at most 255 times, they are kept to the bit (MXFP4).
    power = np.ldexp(np.float32(1), np.frexp(largest)[1] - 8)
    multiples = values / power[:, None]
    unit = np.where((multiples == np.rint(multiples)).all(1) & (power > 0), power, unit)
    steps = np.rint(values / np.where(unit > 0, unit, 1)[:, None])
    return np.clip(steps, 0, 255).astype(np.uint8), unit


def quantize(form: Format, values: np.ndarray, grid: Grid | None = None,
             importance: Importance | None = None) -> Quantized:
    """A float32 matrix of whole tiles and blocks in the integers and scales of a format that has some.

    grid: the one that the values already stand on, if the format keeps it, and has minima. importance: of its columns;
    used where there is no grid, and not for q8 and ternary. Shapes as in `Quantized` and `Grid`. Raises SourceError
    where the values are not what ternary or q4n holds.
    """
    rows, columns = values.shape
    blocks = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, BLOCK)
    if form.name == "q8":
        scale = np.zeros(len(blocks), np.float32)
        threaded(_search_symmetric, (blocks, scale))
        q = np.rint(blocks / np.where(scale > 0, scale, 1)[:, None])
        return Quantized(np.clip(q, -127, 127).astype(np.int8).reshape(rows, columns), scale.reshape(rows, -1))
    if form.name == "ternary":
        found = ternary(values)
        if found is None:
            raise SourceError("a matrix is to be ternary whose weights are not -d, 0 and d; the file is damaged, or "
                              "takes another preset, such as q8")
        return found
    if form.name == "q4n":
        return _two_of_four(blocks.reshape(rows, columns), importance)
    if form.kind == "q4b":
        return _kept(blocks.reshape(rows, columns), importance)
    top = TOPS[form.name]
    scale, minimum = np.zeros(len(blocks), np.float32), np.zeros(len(blocks), np.float32)
    if grid is not None:
        there = blocks.any(1)
        scale, minimum = grid.scale.reshape(-1) * there, grid.minimum.reshape(-1) * there
        odd = np.flatnonzero((minimum < 0) | (scale < 0))
        if len(odd):
            found_scale, found_minimum = np.zeros(len(odd), np.float32), np.zeros(len(odd), np.float32)
            _search_affine(blocks[odd], found_scale, found_minimum, np.empty((0, BLOCK), np.float32), top)
            scale[odd], minimum[odd] = found_scale, found_minimum
    else:
        weights = importance.weights if importance is not None else np.empty((0, BLOCK), np.float32)

        def search(part: np.ndarray, scale: np.ndarray, minimum: np.ndarray) -> None:
            _search_affine(part.reshape(-1, BLOCK), scale.reshape(-1), minimum.reshape(-1), weights, top)

        threaded(search, (blocks.reshape(rows, -1), scale.reshape(rows, -1), minimum.reshape(rows, -1)))
    s, row_scale = _on_row_grid(scale.reshape(rows, -1))
    m, row_minimum = _on_row_grid(minimum.reshape(rows, -1))
    step, lowest = s * row_scale[:, None], m * row_minimum[:, None]
    if importance is not None and importance.compensates and grid is None:
        return Quantized(importance.round(blocks.reshape(rows, columns), step, lowest, top), s, m, row_scale,
                         row_minimum)
    step, lowest = step.reshape(-1, 1), lowest.reshape(-1, 1)
    q = np.rint((blocks + lowest) / np.where(step > 0, step, np.inf))
    return Quantized(np.clip(q, 0, top).astype(np.uint8).reshape(rows, columns), s, m, row_scale, row_minimum)


def ternary(values: np.ndarray) -> Quantized | None:
    """A float32 matrix of whole tiles and blocks as ternary, to the bit; None where it is not that: where a row's
    blocks are not each of -d, 0 and d, or have several d of which one is no float16."""
    rows, columns = values.shape
    blocks = np.ascontiguousarray(values, np.float32).reshape(rows, -1, BLOCK)
    largest = np.abs(blocks).max(2)
    if not np.isfinite(largest).all() or ((blocks != 0) & (np.abs(blocks) != largest[..., None])).any():
        return None
    q = np.sign(blocks).astype(np.int8).reshape(rows, columns)
    of_row = largest.max(1)
    alike = ((largest == 0) | (largest == of_row[:, None])).all(1)
    s = np.where(alike[:, None], np.float32(1), largest)
    with np.errstate(over="ignore"):
        held = s.astype(np.float16).astype(np.float32)
    return Quantized(q, s, scale=np.where(alike, of_row, np.float32(1))) if np.array_equal(held, s) else None


def two_of_four(values: np.ndarray) -> bool:
    """Whether of every four neighbouring columns, (rows, columns), no more than two are not 0. Columns that are missing
    at the end are 0."""
    padded = np.pad(values != 0, ((0, 0), (0, -values.shape[1] % 4)))
    return bool((np.count_nonzero(padded.reshape(len(values), -1, 4), 2) <= 2).all())


def _two_of_four(values: np.ndarray, importance: Importance | None) -> Quantized:
    """float32 (rows, columns) as q4n."""
    if not two_of_four(values):
        raise SourceError("a matrix is to be 2:4 sparse that has four neighbouring weights of which more than two are "
                          "not 0; prune it to 2:4, or take another format")
    return _kept(values, importance)


def _kept(values: np.ndarray, importance: Importance | None) -> Quantized:
    """float32 (rows, columns) in -8 to 7 and scales, what is 0 staying so."""
    rows, columns = values.shape
    scale = np.zeros((rows, columns // BLOCK), np.float32)
    weights = importance.weights if importance is not None else np.empty((0, BLOCK), np.float32)

    def search(part: np.ndarray, scale: np.ndarray) -> None:
        _search_kept(part.reshape(-1, BLOCK), scale.reshape(-1), weights)

    threaded(search, (values, scale))
    s, row_scale = _on_row_grid(scale)
    step = s * row_scale[:, None]
    if importance is not None and importance.compensates:
        q = importance.round(values, step, 8 * step, 15, keep_zeros=True).astype(np.int8) - np.int8(8)
    else:
        blocks = values.reshape(rows, -1, BLOCK)
        q = np.clip(np.rint(blocks / np.where(step > 0, step, np.inf)[..., None]), -8, 7).astype(np.int8).reshape(
            rows, columns)
    return Quantized(np.where(values == 0, np.int8(0), q), s, scale=row_scale)


def packed(form: Format, values: np.ndarray, grid: Grid | None = None,
           importance: Importance | None = None) -> np.ndarray:
    """A float32 matrix of any shape in the kernels' layout: uint8 of shape (tiles, tile_bytes), padded with zeros."""
    rows, columns = values.shape
    padding = (-rows % TILE, -columns % BLOCK)
    if any(padding):
        values = np.pad(values, ((0, padding[0]), (0, padding[1])))
        if grid is not None:
            scale, minimum = (np.pad(v, ((0, padding[0]), (0, -(-columns // BLOCK) - v.shape[1])))
                              for v in (grid.scale, grid.minimum))
            grid = Grid(scale, minimum, grid.top)
    if form.activation is Activation.FLOAT:
        return pack(form, values)
    made = quantize(form, values, grid, importance)
    if form.kind != "q4b":
        return pack(form, made)
    return tiles_of_size(form, packed_loosely(made)) if form.room else packed_loosely(made)


def packed_rows(form: str, values: np.ndarray, importance: Importance | None = None) -> np.ndarray:
    """Rows of a float32 matrix as vectors of their own (kernels/neuron_rows.py): uint8 of shape (rows, row_bytes)."""
    rows, columns = values.shape
    values = np.pad(values, ((0, -rows % TILE), (0, -columns % BLOCK)))
    made = quantize(FORMATS[form], values, None, importance) if form in ("q4", "q8") else values
    return pack_rows(form, made)[:rows]
