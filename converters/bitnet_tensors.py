"""Ternary matrices as Hugging Face's files of BitNet have them: four weights in a byte, and one scale for all."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgert.errors import SourceError

from .gptoss_tensors import Bytes
from .rows import check_rows
from .source import Grid, SourceTensor

_IN_BYTE = 4


class Packed:
    """A matrix whose row r is, of row r % n of the bytes, bits 2 * (r // n) and the next: 0, 1 or 2 for -1, 0 or 1,
    n being a quarter of the rows. Implements source.SourceTensor.

    unit: what all of it is multiplied by.
    """

    type_name = "BITNET"

    def __init__(self, name: str, packed: Bytes, unit: float) -> None:
        self._name, self._packed, self._unit = name, packed, np.float32(unit)
        self._run = packed.shape[0]
        self.shape: tuple[int, ...] = (_IN_BYTE * self._run, packed.shape[1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop as float32. Raises SourceError."""
        check_rows(start, stop, self.shape[0])
        found: list[np.ndarray] = [np.empty((0, self.shape[1]), np.uint8)]
        for part in range(_IN_BYTE):
            first, last = (min(max(at - part * self._run, 0), self._run) for at in (start, stop))
            if first < last:
                found.append(self._packed.raw(first, last) >> 2 * part & 3)
        codes = np.concatenate(found)
        if (codes == 3).any():
            raise SourceError(f"tensor {self._name} has a weight that is not -1, 0 or 1: the file is damaged")
        return (codes.astype(np.float32) - 1) * self._unit

    def grid(self, start: int, stop: int) -> Grid | None:
        """The grid of rows start to stop. Raises IndexError where these are not there."""
        check_rows(start, stop, self.shape[0])
        scale = np.full((stop - start, -(-self.shape[1] // 32)), abs(self._unit), np.float32)
        return Grid(scale, scale, 2)


def check_method(settings: Mapping[str, Any]) -> None:
    """Raises ValueError where a quantization_config of BitNet's asks for what is not known here."""
    if settings.get("quantization_mode", "offline") != "offline":
        raise ValueError("its weights are ternary only once they are loaded (quantization_mode "
                         f"{settings['quantization_mode']!r}); convert the packed model instead")
    if settings.get("use_rms_norm"):
        raise ValueError("norms before every matrix (use_rms_norm) are not supported")
    if settings.get("linear_class", "bitlinear") not in ("bitlinear", "autobitlinear"):
        raise ValueError(f"linear_class {settings['linear_class']!r} is not known; known: bitlinear, autobitlinear")


def unpacked(found: Mapping[str, SourceTensor], packed: Mapping[str, Bytes],
             settings: Mapping[str, Any]) -> dict[str, SourceTensor]:
    """The tensors of a model, those that are packed with their scales. Raises SourceError.

    settings: the quantization_config. Of its linear classes `bitlinear` divides by the scale, `autobitlinear`
    multiplies (transformers' integrations/bitnet.py).
    """
    tensors = dict(found)
    divides = settings.get("linear_class", "bitlinear") == "bitlinear"
    for name, of in packed.items():
        stem, scale = name.removesuffix(".weight"), tensors.pop(name.removesuffix("weight") + "weight_scale", None)
        if stem == name or len(of.shape) != 2 or not all(of.shape) or scale is None or scale.shape != (1,):
            raise SourceError(f"tensor {name} is of type U8, and is no packed matrix with a weight_scale")
        value = float(scale.read(0, 1)[0])
        unit = value if not divides else 1 / value if value else 0.0
        if not 0 < abs(unit) < 1e30:
            raise SourceError(f"tensor {stem}.weight_scale is {value}, which makes no weights: the file is damaged")
        tensors[name] = Packed(name, of, unit)
    return tensors
