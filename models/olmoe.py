"""OLMoE: Llama's block with many small experts, and norms of all queries and of all keys of a token (Muennighoff et al.
2024, "OLMoE: Open Mixture-of-Experts Language Models")."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from . import block, expert_block, expert_config, rotary_config
from .expert_block import wire
from .tensors import TensorSpec

__all__ = ["Config", "wire"]


class _Dense(rotary_config.Config):
    architecture: ClassVar[str] = "olmoe"

    def tensors(self) -> Iterator[TensorSpec]:
        return block.tensors(self)


@dataclass(frozen=True, kw_only=True)
class Config(expert_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "olmoe"
    dense: ClassVar[type[rotary_config.Config]] = _Dense
    gguf_name: ClassVar[str] = "olmoe"
    query_key_norms: ClassVar[str | None] = "whole"

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        """From the JSON object in Hugging Face's config.json. Raises KeyError or ValueError."""
        if values.get("clip_qkv") is not None:
            raise ValueError(f"queries, keys and values that are clipped (clip_qkv {values['clip_qkv']}) are not "
                             "supported")
        return cls.with_experts(cls.dense.from_hf(values), **cls.own_from_hf(values))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], **options: Any) -> Self:
        """From GGUF metadata. Raises KeyError or ValueError."""
        return cls.with_experts(cls.dense.from_gguf(metadata, **options), **cls.own_from_gguf(metadata),
                                norm_topk_prob=False)

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return expert_block.tensors(self)
