"""Mixtral: Llama's block with a few of several experts for each token (Jiang et al. 2024, "Mixtral of Experts")."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from . import expert_block, expert_config, llama, rotary_config
from .expert_block import wire
from .tensors import TensorSpec

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(expert_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "mixtral"
    dense: ClassVar[type[rotary_config.Config]] = llama.Config
    gguf_name: ClassVar[str] = "llama"
    """In GGUF files it is a Llama with experts."""

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        """From the JSON object in Hugging Face's config.json. Raises KeyError or ValueError."""
        window = values.get("sliding_window")
        if window is not None and window < values["max_position_embeddings"]:
            raise ValueError("sliding-window attention is not supported")
        return cls.with_experts(cls.dense.from_hf(values), **cls.own_from_hf(values) | {"norm_topk_prob": True})

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], **options: Any) -> Self:
        """From GGUF metadata. Raises KeyError or ValueError."""
        return cls.with_experts(cls.dense.from_gguf(metadata, **options), **cls.own_from_gguf(metadata),
                                norm_topk_prob=True)

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return expert_block.tensors(self)
