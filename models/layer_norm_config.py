"""Hyper-parameters of families with rotary positions over a part of each head, whose norms are LayerNorm."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar

from . import rotary_config
from .config import check_positive
from .unread import reader_of


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.Partial):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    READS: ClassVar[frozenset[str]] = frozenset({"partial_rotary_factor"})

    layer_norm_eps: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("layer_norm_eps", self.layer_norm_eps)

    @property
    def norm_epsilon(self) -> float:
        return self.layer_norm_eps

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().hf_fields(values), "layer_norm_eps": float(values["layer_norm_eps"])}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        get = reader_of(metadata, cls.architecture)
        return {**super().gguf_fields(metadata, tensors, rope_tensors),
                "layer_norm_eps": float(get("attention.layer_norm_epsilon"))}
