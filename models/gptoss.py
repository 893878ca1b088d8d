"""gpt-oss: experts whose gate and up are clamped, with biases everywhere; every second layer sees a window, and
attention has sinks (OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card")."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from edgert.kernels.formats import BLOCK

from . import expert_block, expert_config, rotary_config
from .expert_block import wire
from .rope import Yarn
from .tensors import TensorSpec

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.Windowed, expert_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "gpt-oss"
    READS: ClassVar[frozenset[str]] = expert_config.Config.READS | {"attention_bias", "sliding_window", "layer_types"}
    GGUF_READS: ClassVar[frozenset[str]] = expert_config.Config.GGUF_READS | {"attention.sliding_window"}
    attention_bias: ClassVar[bool] = True
    biases: ClassVar[bool] = True
    sinks: ClassVar[bool] = True
    gguf_experts_norm: ClassVar[str] = "post_attention_norm.weight"
    gguf_act: ClassVar[str] = "clamped"
    gguf_neurons: ClassVar[str] = "expert_feed_forward_length"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden_size", "intermediate_size"):  # so an expert's biases end where the next one's begin
            if getattr(self, name) % BLOCK:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a multiple of {BLOCK}")

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        for name, known in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0), ("attention_bias", True),
                            ("hidden_act", "silu")):
            if (value := values.get(name, known)) != known:
                raise ValueError(f"{name} is {value!r}, and a gpt-oss with that is not known")
        return {**super().hf_fields(values), "hidden_act": "clamped", "norm_topk_prob": True}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        found = super().gguf_fields(metadata, tensors, rope_tensors)
        if isinstance(scaling := found["rope_scaling"], Yarn):  # as in config.json; the file does not say
            found["rope_scaling"] = replace(scaling, truncate=False)
        full = tuple(range(1, found["num_hidden_layers"], 2)) if found["sliding_window"] is not None else ()
        return {**found, "full_layers": full}

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return expert_block.tensors(self)
