"""Settings of config.json and of GGUF metadata that change what a model computes: none is passed over.

A family reads those that it knows. All others must say what is true of every model that does not have them.
"""

from collections.abc import Callable, Mapping, Set
from typing import Any

NEUTRAL: dict[str, tuple[Any, ...]] = {
    # biases
    "attention_bias": (False,), "mlp_bias": (False,), "use_bias": (False,), "use_qkv_bias": (False,),
    "lm_head_bias": (False,), "qkv_bias": (False,),
    # attention
    "attention_multiplier": (), "attn_logit_softcapping": (), "clip_qkv": (), "layer_types": ("full_attention",),
    "no_rope_layers": (1,), "qk_layernorm": (False,), "use_qk_norm": (False,), "query_pre_attn_scalar": (),
    "sliding_window": (), "use_sliding_window": (False,), "alibi": (False,), "is_causal": (True,),
    "llama_4_scaling": (),
    # rotary positions
    "partial_rotary_factor": (1, 1.0), "rotary_pct": (1, 1.0), "position_embedding_type": ("rope", "rotary"),
    # blocks
    "use_parallel_residual": (False,), "parallel_attn": (False,), "residual_multiplier": (1, 1.0),
    "embedding_multiplier": (1, 1.0), "logits_scaling": (1, 1.0), "logit_scale": (1, 1.0),
    "final_logit_softcapping": (), "scale_depth": (), "scale_emb": (),
    # experts, adapters
    "num_experts": (0, 1), "num_local_experts": (0, 1), "n_routed_experts": (0, 1), "moe_intermediate_size": (),
    "decoder_sparse_step": (1,), "mlp_only_layers": (), "moe_layer_freq": (1,), "scoring_func": ("softmax",),
    "routed_scaling_factor": (1, 1.0), "n_shared_experts": (), "first_k_dense_replace": (0,),
}
"""By name, with the values, of lists those of elements, that change nothing; null and leaving it out never do."""


def refuse_unread(values: Mapping[str, Any], read: Set[str], architecture: str) -> None:
    """Raises ValueError where one of them says something, and is not among those that the family reads."""
    for name in [name for name in NEUTRAL if name in values and name not in read]:
        value = values[name]
        if not _is_neutral(value, NEUTRAL[name]):
            raise ValueError(f"{name} is {value!r}, and with that setting edgert does not know what a model of the "
                             f"family {architecture} computes")


GGUF_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,), "attention.clamp_kqv": (0,), "attention.max_alibi_bias": (0,),
    "attention.scale": (0,), "attention.sliding_window": (0,), "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,), "final_logit_softcapping": (0,), "embedding_scale": (0, 1),
    "residual_scale": (0, 1), "logit_scale": (0, 1), "expert_count": (0,), "expert_shared_count": (0,),
    "expert_weights_scale": (0, 1), "expert_gating_func": (0, 1), "leading_dense_block_count": (0,),
    "rope.scaling.alpha": (0,), "rope.scaling.yarn_ext_factor": (1,), "rope.dimension_sections": (),
    "use_parallel_residual": (False,), "swin_norm": (False,)}
"""Likewise, below the name of the family."""


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    return value is None or all(each in neutral for each in (value if isinstance(value, list) else [value]))


def refuse_unread_gguf(metadata: Mapping[str, Any], read: Set[str], architecture: str) -> None:
    """As `refuse_unread`."""
    for name, neutral in GGUF_NEUTRAL.items():
        value = metadata.get(f"{architecture}.{name}")
        if name not in read and not _is_neutral(value, neutral):
            raise ValueError(f"{architecture}.{name} is {value!r}, and with that edgert does not know what a model of "
                             f"the family {architecture} computes")


def reader_of(metadata: Mapping[str, Any], architecture: str) -> Callable[..., Any]:
    """What reads a family's metadata by name, or gives the default where there is one. Raises KeyError."""
    def get(name: str, default: Any = None) -> Any:
        key = f"{architecture}.{name}"
        return metadata[key] if default is None else metadata.get(key, default)

    return get
