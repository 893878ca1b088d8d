"""Ministral 3, Mistral Small 3.1 and what else llama.cpp calls `mistral3`: Mistral, and in Ministral 3 attention that
is sharper beyond the context that it was first trained for (Mistral AI 2026, "Ministral 3"; `llama_4_scaling_beta`).

That is not computed: such a model takes no more than that context, within which it changes nothing. Of models that see
images too this is what they need for text.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from . import block, rotary_config
from .block import wire
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

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        if "text_config" in values:  # of a model that sees images too
            values = {"tie_word_embeddings": values.get("tie_word_embeddings", False), **values["text_config"]}
        settings = settings_of_hf(values)
        beta = settings.pop("llama_4_scaling_beta", 0)
        found = super().hf_fields({**values, "rope_parameters": settings, "rope_scaling": None})
        if beta:
            found["max_position_embeddings"] = settings.get("original_max_position_embeddings",
                                                            found["max_position_embeddings"])
        return found

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        get, found = reader_of(metadata, cls.architecture), super().gguf_fields(metadata, tensors, rope_tensors)
        if get("attention.temperature_scale", 0.0):
            found["max_position_embeddings"] = int(get("rope.scaling.original_context_length",
                                                       found["max_position_embeddings"]))
        return found

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return block.tensors(self)
