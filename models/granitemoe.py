"""Granite 3's mixtures of experts: Granite's block with many small experts (Granite Team, IBM 2024, "Granite 3.0
Language Models"), and in some a feed-forward part that all tokens share."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar

from . import expert_block, expert_config, granite
from .expert_block import wire
from .tensors import TensorSpec
from .unread import reader_of

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(granite.Config, expert_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "granitemoe"
    READS: ClassVar[frozenset[str]] = granite.Config.READS | expert_config.Config.READS
    GGUF_READS: ClassVar[frozenset[str]] = granite.Config.GGUF_READS | expert_config.Config.GGUF_READS

    shared_intermediate_size: int
    """0 for none."""

    @property
    def shared_size(self) -> int:
        return self.shared_intermediate_size

    @property
    def embedding_scale(self) -> float:
        return self.embedding_multiplier

    @property
    def residual_scale(self) -> float:
        return self.residual_multiplier

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        shared = values.get("shared_intermediate_size", 0) if values.get("model_type") == "granitemoeshared" else 0
        return {**super().hf_fields(values), "norm_topk_prob": True, "shared_intermediate_size": shared}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        shared = int(reader_of(metadata, cls.architecture)("expert_shared_feed_forward_length", 0))
        return {**super().gguf_fields(metadata, tensors, rope_tensors), "shared_intermediate_size": shared}

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return expert_block.tensors(self)
