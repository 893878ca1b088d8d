"""Ministral 3, Mistral Small 3.1 and what else llama.cpp calls `mistral3`: Mistral, and in Ministral 3 attention that
is sharper beyond the context that it was first trained for (Mistral AI 2026, "Ministral 3"; `llama_4_scaling_beta`;
Nakanishi 2025, "Scalable-Softmax"). Of models that see images too this is what they need for text.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from . import block, rotary_config
from .block import wire
from .config import check_positive, check_whole
from .rope import settings_of_hf
from .tensors import TensorSpec
from .unread import reader_of

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "mistral3"
    GGUF_READS: ClassVar[frozenset[str]] = frozenset({"attention.temperature_scale"})
    gguf_rope_pairing: ClassVar[Literal["half", "interleaved"]] = "interleaved"
    LATER: ClassVar[frozenset[str]] = rotary_config.Config.LATER | {"llama_4_scaling_beta", "llama_4_scaling_context"}

    llama_4_scaling_beta: float | None = None
    """How much sharper attention gets with the logarithm of the position's multiple of `llama_4_scaling_context`; both
    are None where it does not."""
    llama_4_scaling_context: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.llama_4_scaling_beta is not None or self.llama_4_scaling_context is not None:
            check_positive("llama_4_scaling_beta", self.llama_4_scaling_beta)
            check_whole("llama_4_scaling_context", self.llama_4_scaling_context)

    def query_scales(self, positions: np.ndarray) -> np.ndarray | None:
        if self.llama_4_scaling_beta is None or self.llama_4_scaling_context is None:
            return None
        return 1 + self.llama_4_scaling_beta * np.log1p(positions // self.llama_4_scaling_context)

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        if "text_config" in values:  # of a model that sees images too
            values = {"tie_word_embeddings": values.get("tie_word_embeddings", False), **values["text_config"]}
        settings = settings_of_hf(values)
        beta = settings.pop("llama_4_scaling_beta", 0)
        found = super().hf_fields({**values, "rope_parameters": settings, "rope_scaling": None})
        return {**found, **_sharper(beta, settings.get("original_max_position_embeddings"), found)}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        get, found = reader_of(metadata, cls.architecture), super().gguf_fields(metadata, tensors, rope_tensors)
        return {**found, **_sharper(get("attention.temperature_scale", 0.0),
                                    get("rope.scaling.original_context_length", 0), found)}

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return block.tensors(self)


def _sharper(beta: Any, context: Any, found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of attention that gets sharper; of a model that knows no more than that context, none."""
    if not beta or not context or context >= found["max_position_embeddings"]:
        return {}
    return {"llama_4_scaling_beta": float(beta), "llama_4_scaling_context": context}
