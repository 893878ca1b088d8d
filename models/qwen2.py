"""Qwen2 and Qwen2.5: Llama's block with biases on the q, k and v projections (Yang et al. 2024, "Qwen2")."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from . import llama
from .llama import GGUF_NAMES, wire

__all__ = ["GGUF_NAMES", "Config", "wire"]


@dataclass(frozen=True)
class Config(llama.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "qwen2"
    attention_bias: ClassVar[bool] = True
    gguf_rope_pairing: ClassVar[Literal["half", "interleaved"]] = "half"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """From the JSON object in Hugging Face's config.json. Raises KeyError or ValueError."""
        return super().from_hf({**config, "attention_bias": True})
