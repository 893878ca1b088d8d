"""Presets: which weight format each matrix gets."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

from edgert.errors import SourceError
from edgert.kernels.formats import BLOCK, FORMATS
from edgert.models.tensors import ALWAYS_RESIDENT, FeedForward, Role, TensorSpec, feed_forward_parts

from .source import Source

PRESETS = {
    "q4": "6-bit for the most sensitive matrices and 4-bit for the others",
    "q6": "6-bit",
    "q3": "2 to 6 bits, by what each matrix costs when it is rounded: the smallest that is about 2 % worse than the "
          "source",
    "q2": "the same, about 20 % worse",
    "q8": "8-bit",
    "f16": "16-bit floats, not quantized",
    "f32": "32-bit floats, not quantized",
}
DEFAULT = "q4"
LOSSES = {"q3": 0.02, "q2": 0.2}
"""Presets that are made by measuring (mix.py), and the divergence from the source that each may be expected to have, in
nats a token."""

_FINE_TYPES = {"Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", "MXFP4", "INT8"}
_ROUNDED_ANEW = {"F16", "BF16", "F32", "Q2_K", "Q3_K", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ4_NL", "IQ4_XS",
                 "NVFP4"}
"""Types that stand on no grid of 4 bits, nor have so many bits that they need 6 (gguf_grids.py)."""
_TERNARY = {"TQ1_0", "TQ2_0", "BITNET"}
_BETWEEN = _FINE_TYPES - {"Q6_K", "MXFP4"}
"""Of these, those that stand on no grid of 6 bits. The few weights that make values keep 8: the perplexity of Gemma 3
270M on code is then 1.003 times llama.cpp's, and not 1.011."""
_SENSITIVE = {Role.VALUE, Role.DOWN, Role.SHARED_DOWN}
_PADDING_COUNTS = {Role.EMBEDDING, Role.ATTENTION_OUTPUT}
"""Matrices whose padding columns must be exactly 0, which on a grid with a minimum they are not: what is in the padding
of an embedding row counts in the norm, and behind the heads that attention gives stand values of the norm before it."""


@dataclass(frozen=True)
class Preset:
    """A named choice of formats."""

    name: str
    record: ClassVar[Mapping[str, object]] = {}

    def formats(self, source: Source) -> dict[str, str]:
        """The weight format of every matrix, by its canonical name; for presets of LOSSES that is measured."""
        assert self.name not in LOSSES
        matrices = [spec for spec in source.config.tensors() if spec.is_matrix]
        types = {spec.name: source.tensors[spec.name].type_name for spec in matrices}
        for part in _not_kept_fine(feed_forward_parts(matrices), types):
            types[part.down.name] = types[part.by_rows[0].name]
        sensitive = _SENSITIVE - ({Role.DOWN} if source.config.sparse else set())  # whose neurons have no 6 bits
        layers, ternary = source.config.num_hidden_layers, _ternary(source, matrices)
        return {spec.name: "ternary" if self.name in ("q4", "q6") and spec.name in ternary else
                self._format(spec, types[spec.name], layers, sensitive) for spec in matrices}

    def _format(self, matrix: TensorSpec, type_name: str, layers: int, sensitive: Set[Role]) -> str:
        """type_name: what the source has it in, or is taken to have. layers: in all."""
        if matrix.role in ALWAYS_RESIDENT:
            return "f32" if self.name == "f32" else "f16"
        if self.name in ("q4", "q6") and matrix.role in _PADDING_COUNTS and matrix.shape[1] % BLOCK:
            return "q8"
        if self.name != "q4":
            return self.name
        if matrix.role is Role.HEAD:
            return "q4"  # read whole for every token: 6 % of the bytes for 0.2 % of perplexity (docs/notes/presets.md)
        if type_name in _BETWEEN and matrix.role is Role.VALUE:
            return "q8"
        if type_name in _FINE_TYPES:
            return "q6"
        if type_name not in _ROUNDED_ANEW:
            return "q4"
        if matrix.role is Role.EMBEDDING:
            return "q6"
        if matrix.role in sensitive and matrix.layer is not None and _more_bits(matrix.layer, layers):
            return "q6"
        return "q4"


def _ternary(source: Source, matrices: Sequence[TensorSpec]) -> set[str]:
    """The matrices that are ternary in the source and stay so, to the bit, by name: of layers, and of the rows of a
    layer's neurons, which have one format, all or none."""
    if source.config.selective:  # whose neurons have other formats
        return set()
    found = {spec.name for spec in matrices if spec.layer is not None
             and source.tensors[spec.name].type_name in _TERNARY
             and not (spec.role in _PADDING_COUNTS and spec.shape[1] % BLOCK)}
    for part in feed_forward_parts(matrices):
        if not found.issuperset(rows := [spec.name for spec in part.by_rows]):
            found -= set(rows)
    return found


def _not_kept_fine(parts: list[FeedForward], types: Mapping[str, str]) -> list[FeedForward]:
    """Where a down projection has no more bits than the rest of its layer. One that may keep more keeps them in the
    last third of the layers that have such a one, where each byte of it gains most (docs/notes/presets.md)."""
    finer = [part for part in parts if types[part.down.name] in _FINE_TYPES]
    kept = finer[len(finer) - -(-len(finer) // 3):]
    return [part for part in parts if part not in kept]


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers and every third between, as llama.cpp's Q4_K_M chooses."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def preset(name: str) -> Preset:
    """A preset by name. Raises SourceError."""
    if name not in PRESETS:
        raise SourceError(f"preset {name!r} is not known; known: {', '.join(PRESETS)}")
    return Preset(name)


assert set(PRESETS) <= set(FORMATS)
