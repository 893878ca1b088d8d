"""Gemma 2 (Gemma Team 2024, "Gemma 2: Improving Open Language Models at a Practical Size"): every second layer sees a
window, and tanh caps scores and logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from . import gemma_block
from .gemma_block import wire

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(gemma_block.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "gemma2"
    pattern: ClassVar[int] = 2
    widest: ClassVar[int] = 46
    caps: ClassVar[tuple[float | None, float | None]] = 50.0, 30.0
    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0}
