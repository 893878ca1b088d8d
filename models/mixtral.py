"""Mixtral: Llama's block with a few of several experts for each token (Jiang et al. 2024, "Mixtral of Experts"). In
GGUF files it is a `llama` that has experts."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from . import expert_block, expert_config, llama, rotary_config
from .expert_block import wire
from .tensors import TensorSpec

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.Windowed, expert_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "mixtral"
    READS: ClassVar[frozenset[str]] = expert_config.Config.READS | {"sliding_window"}
    gguf_rope_pairing: ClassVar[Literal["half", "interleaved"]] = llama.Config.gguf_rope_pairing

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().hf_fields(values), "norm_topk_prob": True}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        prefix = llama.Config.architecture + "."
        own = {f"{cls.architecture}.{name.removeprefix(prefix)}": value for name, value in metadata.items()
               if name.startswith(prefix)}
        return super().gguf_fields(own, tensors, rope_tensors)

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return expert_block.tensors(self)
