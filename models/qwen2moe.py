"""Qwen2's and Qwen1.5's mixtures of experts: Qwen2's block with many small experts, and one that all tokens share, each
as much as it needs of it (Yang et al. 2024, "Qwen2 Technical Report")."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar

from . import expert_block, expert_config, rotary_config
from .config import check_whole
from .expert_block import wire
from .tensors import TensorSpec
from .unread import reader_of

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.SwitchedWindow, expert_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "qwen2moe"
    READS: ClassVar[frozenset[str]] = (expert_config.Config.READS | rotary_config.SwitchedWindow.SWITCH
                                        | {"moe_intermediate_size", "qkv_bias"})
    attention_bias: ClassVar[bool] = True
    shared_weighed: ClassVar[bool] = True
    hf_neurons: ClassVar[str] = "moe_intermediate_size"
    gguf_neurons: ClassVar[str] = "expert_feed_forward_length"
    gguf_norm_topk_prob: ClassVar[bool] = False

    shared_expert_intermediate_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("shared_expert_intermediate_size", self.shared_expert_intermediate_size)

    @property
    def shared_size(self) -> int:
        return self.shared_expert_intermediate_size

    @classmethod
    def windowed(cls, layer: int, values: Mapping[str, Any]) -> bool:
        return layer % 2 == 0 and not super().windowed(layer, values)

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        if not values.get("qkv_bias", True):
            raise ValueError("qkv_bias is false, and a Qwen2 without those biases is not known")
        return {**super().hf_fields(values),
                "shared_expert_intermediate_size": values["shared_expert_intermediate_size"]}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        get = reader_of(metadata, cls.architecture)
        return {**super().gguf_fields(metadata, tensors, rope_tensors),
                "shared_expert_intermediate_size": int(get("expert_shared_feed_forward_length"))}

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return expert_block.tensors(self)
