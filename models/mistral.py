"""Mistral and Ministral: Llama's block (Jiang et al. 2023, "Mistral 7B"). In GGUF files they are `llama`.

The first Mistral 7B sees the latest 4,096 positions; such a GGUF file does not say so, and sees all."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from . import block, rotary_config
from .block import wire
from .tensors import TensorSpec

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.Windowed, rotary_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "mistral"
    READS: ClassVar[frozenset[str]] = frozenset({"layer_types", "sliding_window"})

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return block.tensors(self)
