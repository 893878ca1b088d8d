"""OLMoE: Llama's block with many small experts, and norms of all queries and of all keys of a token (Muennighoff et al.
2024, "OLMoE: Open Mixture-of-Experts Language Models")."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from . import expert_block, expert_config
from .expert_block import wire
from .tensors import TensorSpec

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(expert_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "olmoe"
    gguf_norm_topk_prob: ClassVar[bool] = False
    query_key_norms: ClassVar[str | None] = "whole"

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return expert_block.tensors(self)
