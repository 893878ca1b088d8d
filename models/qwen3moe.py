"""Qwen3's mixtures of experts: Llama's block with many small experts, and a norm of each head's query and key (Yang et
al. 2025, "Qwen3")."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from . import expert_block, expert_config, rotary_config
from .expert_block import wire
from .tensors import TensorSpec

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.SwitchedWindow, expert_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "qwen3moe"
    READS: ClassVar[frozenset[str]] = (expert_config.Config.READS | rotary_config.SwitchedWindow.SWITCH
                                        | {"moe_intermediate_size"})
    hf_neurons: ClassVar[str] = "moe_intermediate_size"
    gguf_neurons: ClassVar[str] = "expert_feed_forward_length"
    query_key_norms: ClassVar[str | None] = "head"

    @classmethod
    def windowed(cls, layer: int, values: Mapping[str, Any]) -> bool:
        return True

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return expert_block.tensors(self)
