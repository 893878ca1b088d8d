"""The tensors of gpt-oss' experts as those of other mixtures are (expert_tensors.py). In its files rows of gate and up
are mixed, one of each in turn, and what is not quantized is transposed."""

import re
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from edgert.errors import SourceError

from .rows import check_rows
from .source import Grid, SourceTensor

_MATRIX = re.compile(r"(.+\.mlp\.experts)\.(gate_up_proj|down_proj)(|_bias|_blocks|_scales)")
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What 4 bits of MXFP4 are (Open Compute Project 2023, "Microscaling Formats Specification")."""
_LEAST_UNIT, _LARGEST = 0.5, 12
"""All of them are whole multiples of the first, at most so many times."""


class Bytes(Protocol):
    """A tensor of bytes in a file."""

    shape: tuple[int, ...]

    def raw(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop, uint8. Raises SourceError."""


class _Every:
    """Of matrices, one below the other, every `step`-th row from `first` on. Implements source.SourceTensor."""

    def __init__(self, count: int, rows: int, columns: int, first: int, step: int, type_name: str) -> None:
        self._rows, self._first, self._step = rows // step, first, step
        self.shape: tuple[int, ...] = (count * self._rows, columns)
        self.type_name = type_name

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop as float32. Raises SourceError."""
        check_rows(start, stop, self.shape[0])
        found = [np.empty((0, self.shape[1]), np.float32)]
        for i in range(start // self._rows, -(-stop // self._rows) if stop > start else 0):
            first, last = max(start - i * self._rows, 0), min(stop - i * self._rows, self._rows)
            found.append(self._of(i)[self._first::self._step][first:last])
        return np.concatenate(found)

    def grid(self, start: int, stop: int) -> Grid | None:
        """None: what is not quantized has none."""
        return None

    def _of(self, number: int) -> np.ndarray:
        """A matrix as float32."""
        raise NotImplementedError


class Transposed(_Every):
    """Of matrices that a file has transposed."""

    def __init__(self, tensor: SourceTensor, first: int, step: int) -> None:
        count, columns, rows = tensor.shape
        super().__init__(count, rows, columns, first, step, tensor.type_name)
        self._tensor = tensor

    def _of(self, number: int) -> np.ndarray:
        return self._tensor.read(number, number + 1)[0].T


class Mxfp4(_Every):
    """Of matrices in MXFP4: 32 weights of 4 bits, two in a byte, and the exponent that they share."""

    def __init__(self, blocks: Bytes, scales: Bytes, first: int, step: int) -> None:
        count, rows, groups, _ = blocks.shape
        super().__init__(count, rows, 32 * groups, first, step, "MXFP4")
        self._blocks, self._scales = blocks, scales

    def _of(self, number: int) -> np.ndarray:
        packed, units = self._blocks.raw(number, number + 1)[0], self._units(number)
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], 32)
        return (_E2M1[codes] * units[..., None]).reshape(len(codes), -1)

    def _units(self, number: int) -> np.ndarray:
        """What the weights of each 32 are multiplied by."""
        exponents = self._scales.raw(number, number + 1)[0].astype(np.int32) - 127
        return np.ldexp(np.float32(1), exponents).astype(np.float32)

    def grid(self, start: int, stop: int) -> Grid | None:
        """The grid of rows start to stop, which holds them all. Raises SourceError."""
        found = [np.empty((0, self.shape[1] // 32), np.float32)]
        for i in range(start // self._rows, -(-stop // self._rows) if stop > start else 0):
            first, last = max(start - i * self._rows, 0), min(stop - i * self._rows, self._rows)
            found.append(self._units(i)[self._first::self._step][first:last] * np.float32(_LEAST_UNIT))
        scale = np.concatenate(found)
        return Grid(scale, -_LARGEST * scale, 2 * _LARGEST)


class Vectors:
    """Vectors, one behind the other: of each every `step`-th element from `first` on. Implements source.SourceTensor.
    """

    def __init__(self, tensor: SourceTensor, first: int = 0, step: int = 1) -> None:
        self._tensor, self._first, self._step = tensor, first, step
        self.shape: tuple[int, ...] = (tensor.shape[0] * (tensor.shape[1] // step),)
        self.type_name = tensor.type_name

    def read(self, start: int, stop: int) -> np.ndarray:
        """Elements start to stop as float32. Raises SourceError."""
        every = self._tensor.read(0, self._tensor.shape[0])
        return np.ascontiguousarray(every[:, self._first::self._step]).reshape(-1)[start:stop]

    def grid(self, start: int, stop: int) -> Grid | None:
        """None: vectors have none."""
        return None


def unmixed(found: Mapping[str, SourceTensor], quantized: Mapping[str, Bytes]) -> dict[str, SourceTensor]:
    """The tensors of a safetensors model by name, those of gpt-oss' experts by the names that they have here.
    quantized: tensors of bytes. Raises SourceError where one is none of theirs."""
    tensors: dict[str, SourceTensor] = {}
    every: dict[str, SourceTensor | Bytes] = {**found, **quantized}
    for name, tensor in every.items():
        match = _MATRIX.fullmatch(name)
        if match is None or (match[3] in ("", "_bias")) != (name in found):
            if name not in found:
                raise SourceError(f"tensor {name} is of type U8, which edgert does not read there")
            tensors[name] = found[name]
            continue
        parts = [("down", 0, 1)] if match[2] == "down_proj" else [("gate", 0, 2), ("up", 1, 2)]
        for part, first, step in parts:
            here = f"{match[1]}.{part}_proj."
            if match[3] == "_bias" and len(tensor.shape) == 2:
                tensors[here + "bias"] = Vectors(found[name], first, step)
            elif match[3] == "" and len(tensor.shape) == 3:
                tensors[here + "weight"] = Transposed(found[name], first, step)
            elif match[3] == "_blocks" and len(tensor.shape) == 4:
                scales = quantized.get(name.removesuffix("blocks") + "scales")
                if scales is not None and scales.shape == tensor.shape[:3] and tensor.shape[3] == 16:
                    tensors[here + "weight"] = Mxfp4(quantized[name], scales, first, step)
    return tensors
