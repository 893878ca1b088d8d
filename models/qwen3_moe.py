"""Qwen3's mixtures of experts: Llama's block with many small experts, and a norm of each head's query and key (Yang et
al. 2025, "Qwen3")."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from . import block, expert_block, expert_config, rotary_config
from .expert_block import wire
from .tensors import TensorSpec

__all__ = ["Config", "wire"]


class _Dense(rotary_config.Config):
    architecture: ClassVar[str] = "qwen3moe"

    def tensors(self) -> Iterator[TensorSpec]:
        return block.tensors(self)


@dataclass(frozen=True, kw_only=True)
class Config(expert_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "qwen3_moe"
    dense: ClassVar[type[rotary_config.Config]] = _Dense
    gguf_name: ClassVar[str] = "qwen3moe"
    query_key_norms: ClassVar[str | None] = "head"

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        """From the JSON object in Hugging Face's config.json. Raises KeyError or ValueError."""
        if values.get("mlp_only_layers") or values.get("decoder_sparse_step", 1) != 1:
            raise ValueError("layers without experts among those that have some are not supported")
        own = {"intermediate_size": values["moe_intermediate_size"]}
        return cls.with_experts(cls.dense.from_hf({**values, **own}), **cls.own_from_hf(values))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], **options: Any) -> Self:
        """From GGUF metadata. Raises KeyError or ValueError."""
        own = cls.own_from_gguf(metadata)
        values = {f"{cls.gguf_name}.feed_forward_length": own.get("intermediate_size"), **metadata}
        return cls.with_experts(cls.dense.from_gguf(values, **options), **own, norm_topk_prob=True)

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return expert_block.tensors(self)
