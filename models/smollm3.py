"""SmolLM3: Llama's block, but every fourth layer knows no positions (Bakouch et al. 2025, "SmolLM3"; Yang et al. 2025,
"Rope to Nope and Back Again")."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from . import block, rotary_config
from .block import wire
from .config import check_whole
from .tensors import TensorSpec

__all__ = ["Config", "wire"]

_INTERVAL = 4


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.SwitchedWindow, rotary_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "smollm3"
    READS: ClassVar[frozenset[str]] = rotary_config.SwitchedWindow.SWITCH | {"no_rope_layers"}
    gguf_rope_pairing: ClassVar[Literal["half", "interleaved"]] = "interleaved"
    usual_theta: ClassVar[float] = 2000000.0
    usually_tied: ClassVar[bool] = True

    unrotated_layers: tuple[int, ...]
    """Numbers of the layers that know no positions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.unrotated_layers, tuple) or {*map(type, self.unrotated_layers)} - {int}:
            raise ValueError(f"unrotated_layers is {self.unrotated_layers!r}, expected numbers of layers")

    def rope_table(self, layer: int) -> int | None:
        return None if layer in self.unrotated_layers else 0

    @classmethod
    def windowed(cls, layer: int, values: Mapping[str, Any]) -> bool:
        return layer in _unrotated(values)

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().hf_fields(values), "unrotated_layers": _unrotated(values)}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        found = super().gguf_fields(metadata, tensors, rope_tensors)
        return {**found, "unrotated_layers": _every(_INTERVAL, found["num_hidden_layers"])}  # as llama.cpp has it

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return super().from_json({**values, "unrotated_layers": tuple(values["unrotated_layers"])})

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return block.tensors(self)


def _unrotated(values: Mapping[str, Any]) -> tuple[int, ...]:
    """What a config.json says of them."""
    rotates = values.get("no_rope_layers")  # 1 for a layer that does rotate
    if rotates is None:
        return _every(values.get("no_rope_layer_interval", _INTERVAL), values["num_hidden_layers"])
    if isinstance(rotates, list) and all(value in (0, 1) for value in rotates):
        return tuple(layer for layer, value in enumerate(rotates) if not value)
    raise ValueError("no_rope_layers is not a list of 0 and 1")


def _every(interval: Any, layers: Any) -> tuple[int, ...]:
    """The last of so many layers each time."""
    check_whole("no_rope_layer_interval", interval)
    check_whole("num_hidden_layers", layers)
    return tuple(range(interval - 1, layers, interval))
