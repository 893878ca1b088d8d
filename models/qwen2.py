"""Qwen2 and Qwen2.5: Llama's block with biases on the q, k and v projections (Yang et al. 2024, "Qwen2")."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from . import block, rotary_config
from .block import wire
from .tensors import TensorSpec

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.SwitchedWindow, rotary_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "qwen2"
    READS: ClassVar[frozenset[str]] = rotary_config.SwitchedWindow.SWITCH | {"attention_bias"}
    attention_bias: ClassVar[bool] = True

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return block.tensors(self)
