"""The tensors of ONNX models as `SourceTensor`s: floats in either order, blocks of 4 or 8 bits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgert.kernels.formats import BLOCK

from .onnx_file import Stored
from .reading import require_finite
from .rows import check_rows
from .source import Grid

_BAND_BYTES = 64 << 20
TYPE_NAMES = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}
"""What the other sources call the types of floats."""


@dataclass
class Floats:
    """Weights as they are; `stored` has them in this order, or is a vector."""

    stored: Stored
    path: Path

    def __post_init__(self) -> None:
        self.shape, self.type_name = self.stored.shape, TYPE_NAMES[self.stored.type]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (elements, of a vector) as float32. Raises SourceError."""
        check_rows(start, stop, self.shape[0])
        row = int(np.prod(self.shape[1:]))
        values = self.stored.floats(start * row, (stop - start) * row)
        return require_finite(values, self.path, self.stored.name).reshape(stop - start, *self.shape[1:])

    def grid(self, start: int, stop: int) -> Grid | None:
        """None: these types have no 4-bit grid."""
        return None


class LatestBand:
    """The band of a `Transposed` that was read last. All of a model share one, so that there is only one in memory."""

    def __init__(self) -> None:
        self.of: tuple[object, int] | None = None
        self.values = np.empty(0, np.float32)


@dataclass
class Transposed:
    """A matrix whose columns `stored` has as rows, as ONNX's MatMul takes them.

    It is read in bands of rows, a piece of each stored row at a time, whatever rows are asked for.
    """

    stored: Stored
    path: Path
    latest: LatestBand

    def __post_init__(self) -> None:
        self.shape, self.type_name = self.stored.shape[::-1], TYPE_NAMES[self.stored.type]
        self._band_rows = max(_BAND_BYTES // (4 * max(self.shape[1], 1)), 1)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop as float32. Raises SourceError."""
        check_rows(start, stop, self.shape[0])
        values = np.empty((stop - start, self.shape[1]), np.float32)
        for number in range(start // self._band_rows, -(-stop // self._band_rows)):
            first = number * self._band_rows
            some = slice(max(start, first), min(stop, first + self._band_rows))
            values[some.start - start:some.stop - start] = self._band(number)[:, some.start - first:some.stop - first].T
        return values

    def _band(self, number: int) -> np.ndarray:
        """float32 of shape (columns, rows of the band)."""
        if self.latest.of is None or self.latest.of[0] is not self.stored or self.latest.of[1] != number:
            rows, columns = self.shape
            first = number * self._band_rows
            count = min(self._band_rows, rows - first)
            band = np.empty((columns, count), np.float32)
            if count == rows:
                band[:] = self.stored.floats(0, rows * columns).reshape(columns, rows)
            else:
                for column in range(columns):
                    band[column] = self.stored.floats(column * rows + first, count)
            self.latest.of = self.stored, number
            self.latest.values = require_finite(band, self.path, self.stored.name)
        return self.latest.values

    def grid(self, start: int, stop: int) -> Grid | None:
        """None: these types have no 4-bit grid."""
        return None


@dataclass
class Blocks:
    """A matrix of integers with a scale, and perhaps a zero point, for every `block_size` weights of a row: weight =
    (q - zero point) * scale, as com.microsoft's MatMulNBits and GatherBlockQuantized have it.

    codes: q, `bits` each, 4 or 8; each row stands for itself, filled up to whole blocks where `padded`. zero_points:
    likewise, or floats; without them it is `zero`. signed: q and the zero points are two's complements, whose zero
    point without any is 0. block_size: a multiple of 32.
    """

    codes: Stored
    scales: Stored
    zero_points: Stored | None
    shape: tuple[int, ...]
    bits: int
    block_size: int
    zero: int
    path: Path
    signed: bool = False
    padded: bool = True

    def __post_init__(self) -> None:
        self.type_name = f"INT{self.bits}"
        self._blocks = -(-self.shape[1] // self.block_size)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop as float32. Raises SourceError."""
        check_rows(start, stop, self.shape[0])
        stored_columns = self._blocks * self.block_size if self.padded else self.shape[1]
        codes = self._integers(self.codes, start, stop, stored_columns)[:, :self.shape[1]]
        scale, zero = (np.repeat(v, self.block_size, 1)[:, :self.shape[1]] for v in self._scales(start, stop))
        values = codes.astype(np.float32)
        values -= zero
        with np.errstate(all="ignore"):  # infinities are found below
            values *= scale
        return require_finite(values, self.path, self.codes.name)

    def grid(self, start: int, stop: int) -> Grid | None:
        """The 4-bit grid of rows start to stop, if it is one; otherwise None. Raises SourceError.

        Scales are never negative: where the file's is, the grid is the mirrored one, with q' = 15 - q.
        """
        if self.bits != 4:
            return None
        check_rows(start, stop, self.shape[0])
        scale, zero = self._scales(start, stop)
        minimum = np.abs(scale) * np.where(scale < 0, 15 - zero, zero)
        scales, minimums = (np.ascontiguousarray(np.repeat(v, self.block_size // BLOCK, 1)
                                                 [:, :-(-self.shape[1] // BLOCK)]) for v in (np.abs(scale), minimum))
        return Grid(scales, minimums)

    def _scales(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Scales and zero points of rows start to stop, float32 of shape (rows, blocks)."""
        count, shape = (stop - start) * self._blocks, (stop - start, self._blocks)
        scale = require_finite(self.scales.floats(start * self._blocks, count), self.path, self.scales.name)
        if self.zero_points is None:
            zero = np.full(count, self.zero, np.float32)
        elif self.zero_points.type in TYPE_NAMES:
            zero = require_finite(self.zero_points.floats(start * self._blocks, count), self.path,
                                  self.zero_points.name)
        else:
            zero = self._integers(self.zero_points, start, stop, self._blocks).astype(np.float32)
        return scale.reshape(shape), zero.reshape(shape)

    def _integers(self, of: Stored, start: int, stop: int, columns: int) -> np.ndarray:
        """Rows start to stop of integers, uint8 of shape (rows, columns); two's complements as their value and half of
        the range."""
        row = -(-columns * self.bits // 8)
        raw = of.raw(start * row, (stop - start) * row).reshape(stop - start, row)
        if self.bits == 4:
            raw = np.stack([raw & 15, raw >> 4], 2).reshape(stop - start, 2 * row)[:, :columns]
        return raw ^ np.uint8(1 << self.bits - 1) if self.signed else raw
