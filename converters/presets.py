"""Presets: which weight format each matrix gets."""

from dataclasses import dataclass

from edgert.errors import SourceError
from edgert.kernels.formats import FORMATS

from .source import Source

PRESETS = {
    "q4": "4 bits, and 6 where the source has more than 5 or, from 16 bits, where it hurts most; the default",
    "q6": "6 bits throughout",
    "q8": "8 bits throughout",
    "f16": "half precision, not quantized",
    "f32": "float32, not quantized",
}
DEFAULT = "q4"

_FINE_TYPES = {"Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"}
_SIXTEEN_OR_MORE = {"F16", "BF16", "F32"}
_SENSITIVE = {"v_proj", "down_proj"}


@dataclass(frozen=True)
class Preset:
    """A named choice of formats."""

    name: str

    def format(self, source: Source, tensor: str) -> str:
        """The weight format of a matrix, by its canonical name."""
        if self.name != "q4":
            return self.name
        kind = tensor.split(".")[-2]
        type_name = source.tensors[tensor].type_name
        if type_name in _FINE_TYPES:
            return "q6"
        if type_name not in _SIXTEEN_OR_MORE:
            return "q4"
        if kind in ("lm_head", "embed_tokens"):
            return "q6"
        if kind in _SENSITIVE and _more_bits(int(tensor.split(".")[2]), source.config.num_hidden_layers):
            return "q6"
        return "q4"


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers and every third between, as llama.cpp's Q4_K_M chooses."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def preset(name: str) -> Preset:
    """A preset by name. Raises SourceError."""
    if name not in PRESETS:
        raise SourceError(f"preset {name!r} is not known; known: {', '.join(PRESETS)}")
    return Preset(name)


assert set(PRESETS) <= set(FORMATS)
