"""The Llama family: Llama 1 to 3, SmolLM2, and everything else that calls itself `llama`.

Touvron et al. 2023, "LLaMA" and "Llama 2"; Dubey et al. 2024, "The Llama 3 Herd of Models".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from . import block, rotary_config
from .block import wire
from .tensors import TensorSpec

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "llama"
    gguf_rope_pairing: ClassVar[Literal["half", "interleaved"]] = "interleaved"
    """llama.cpp's conversion reorders the rows of Llama's q and k projections so that neighbours rotate together."""

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return block.tensors(self)
