"""Qwen2 and Qwen2.5: Llama's block with biases on the q, k and v projections (Yang et al. 2024, "Qwen2")."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from . import block, rotary_config
from .block import wire
from .tensors import TensorSpec

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "qwen2"
    attention_bias: ClassVar[bool] = True

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        """From the JSON object in Hugging Face's config.json. Raises KeyError or ValueError."""
        return super().from_hf({**values, "attention_bias": True})

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return block.tensors(self)
