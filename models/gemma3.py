"""Gemma 3, its text part (Gemma Team 2025, "Gemma 3 Technical Report"): Gemma 2 with norms of queries and keys in the
place of caps, one layer of six that sees all positions, and other rotary frequencies for those than for the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from . import gemma_block
from .config import check_positive
from .gemma_block import FULL, SLIDING, frequencies, require_type, wire

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(gemma_block.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "gemma3"
    head_norms: ClassVar[bool] = True
    pattern: ClassVar[int] = 6
    widest: ClassVar[int] = 62
    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256, "sliding_window": 4096}

    rope_local_base_freq: float
    """`rope_theta` of layers with a window."""
    rope_factor: float = 1.0
    """By which positions are divided where there is no window (Chen et al. 2023, "Extending Context Window of Large
    Language Models via Positional Interpolation")."""

    def __post_init__(self) -> None:
        for name in ("rope_local_base_freq", "rope_factor"):
            check_positive(name, getattr(self, name))
        super().__post_init__()

    def rope_frequencies(self) -> np.ndarray:
        return super().rope_frequencies() / self.rope_factor

    def rope_tables(self) -> list[np.ndarray]:
        return [self.rope_frequencies(), frequencies(self.rope_local_base_freq, self.head_dim)]

    def rope_table(self, layer: int) -> int | None:
        return int(self.layer_types[layer] == SLIDING)

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        """Also from the config.json of a model that sees images too."""
        return super().from_hf(values.get("text_config", values))

    @classmethod
    def hf_rope(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        by_type = values.get("rope_parameters") or {}
        everywhere = {**(values.get("rope_scaling") or {}), **(by_type.get(FULL) or {})}
        local = by_type.get(SLIDING) or {}
        require_type(local, "default")
        linear = require_type(everywhere, "default", "linear") == "linear"
        return {
            "rope_theta": float(everywhere.get("rope_theta") or values.get("rope_theta") or 1e6),
            "rope_local_base_freq": float(local.get("rope_theta") or values.get("rope_local_base_freq") or 1e4),
            "rope_factor": float(everywhere["factor"]) if linear else 1.0}

    @classmethod
    def gguf_rope(cls, metadata: Mapping[str, Any]) -> dict[str, Any]:
        kind = metadata.get("gemma3.rope.scaling.type", "none")
        if kind not in ("none", "linear"):
            raise ValueError(f"rope scaling of type {kind!r} is not known; known: none, linear")
        return {
            "rope_theta": float(metadata.get("gemma3.rope.freq_base", 1e6)),
            "rope_local_base_freq": float(metadata.get("gemma3.rope.freq_base_swa", 1e4)),
            "rope_factor": float(metadata["gemma3.rope.scaling.factor"]) if kind == "linear" else 1.0}
