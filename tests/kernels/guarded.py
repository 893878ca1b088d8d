"""Memory for kernels with canaries around every row, so that a write past its end shows."""

import numpy as np

CANARY = 0xC5
GUARD = 256


class Buffer:
    """`rows` rows of `row_bytes` bytes, `gap` bytes apart, at `address + row * stride`; filled with NaN at first."""

    def __init__(self, rows: int, row_bytes: int, *, gap: int = 64, shift: int = 0) -> None:
        self.stride = row_bytes + gap
        size = rows * self.stride
        self._raw = np.full(size + 2 * GUARD + 64, CANARY, dtype=np.uint8)
        start = GUARD + -self._raw.ctypes.data % 64 + shift
        self._before, self._after = self._raw[:start], self._raw[start + size:]
        self._rows = self._raw[start:start + size].reshape(rows, self.stride)
        self.bytes = self._rows[:, :row_bytes]
        self.bytes[:] = 0xFF
        self.address = self._raw.ctypes.data + start

    def view(self, kind: type) -> np.ndarray:
        """The rows as elements of `kind`; writable."""
        step = np.dtype(kind).itemsize
        return np.ndarray((self._rows.shape[0], self.bytes.shape[1] // step), kind, self._rows, 0, (self.stride, step))

    def check(self) -> None:
        """Every byte between and around the rows is as it was."""
        for part in (self._before, self._after, self._rows[:, self.bytes.shape[1]:]):
            assert (part == CANARY).all(), "a kernel wrote outside its rows"


def floats(values: np.ndarray, *, gap: int = 64, shift: int = 0) -> Buffer:
    """A buffer that holds a float32 array of shape (rows, columns)."""
    values = np.atleast_2d(np.asarray(values, dtype=np.float32))
    buffer = Buffer(values.shape[0], 4 * values.shape[1], gap=gap, shift=shift)
    buffer.view(np.float32)[:] = values
    return buffer
