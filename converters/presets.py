"""Presets: which weight format each matrix gets."""

from dataclasses import dataclass

from edgert.errors import SourceError
from edgert.kernels.formats import BLOCK, FORMATS

from .source import Source

PRESETS = {
    "q4": "6-bit for the most sensitive matrices and 4-bit for the others",
    "q6": "6-bit",
    "q8": "8-bit",
    "f16": "16-bit floats, not quantized",
    "f32": "32-bit floats, not quantized",
}
DEFAULT = "q4"

_FINE_TYPES = {"Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"}
_SIXTEEN_OR_MORE = {"F16", "BF16", "F32"}
_SENSITIVE = {"v_proj", "down_proj"}
_PADDING_COUNTS = {"embed_tokens", "o_proj"}
"""Matrices whose padding columns must be exactly 0, which on a grid with a minimum they are not: what is in the padding
of an embedding row counts in the norm, and behind the heads that attention gives stand values of the norm before it."""


@dataclass(frozen=True)
class Preset:
    """A named choice of formats."""

    name: str

    def format(self, source: Source, tensor: str) -> str:
        """The weight format of a matrix, by its canonical name."""
        kind = tensor.split(".")[-2]
        if self.name in ("q4", "q6") and kind in _PADDING_COUNTS and source.tensors[tensor].shape[1] % BLOCK:
            return "q8"
        if self.name != "q4":
            return self.name
        if kind == "lm_head":
            return "q4"  # read whole for every token: 6 % of the bytes for 0.2 % of perplexity (docs/notes/presets.md)
        type_name = source.tensors[tensor].type_name
        if kind == "down_proj" and not _keeps_fine(source, int(tensor.split(".")[2])):
            type_name = source.tensors[tensor.replace("down_proj", "gate_proj")].type_name
        if type_name in _FINE_TYPES:
            return "q6"
        if type_name not in _SIXTEEN_OR_MORE:
            return "q4"
        if kind == "embed_tokens":
            return "q6"
        if kind in _SENSITIVE and _more_bits(int(tensor.split(".")[2]), source.config.num_hidden_layers):
            return "q6"
        return "q4"


def _keeps_fine(source: Source, layer: int) -> bool:
    """Whether a down projection that may have more bits than the rest of its layer keeps them: in the last third of the
    layers that have such a one, where each byte of it gains most (docs/notes/presets.md)."""
    finer = [number for number in range(source.config.num_hidden_layers)
             if source.tensors[f"model.layers.{number}.mlp.down_proj.weight"].type_name in _FINE_TYPES]
    return layer in finer[len(finer) - -(-len(finer) // 3):]


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers and every third between, as llama.cpp's Q4_K_M chooses."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def preset(name: str) -> Preset:
    """A preset by name. Raises SourceError."""
    if name not in PRESETS:
        raise SourceError(f"preset {name!r} is not known; known: {', '.join(PRESETS)}")
    return Preset(name)


assert set(PRESETS) <= set(FORMATS)
