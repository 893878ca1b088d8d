"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: Llama's block, of which files have q, k and v as one matrix, and gate and up as
another (Abdin et al. 2024, "Phi-3 Technical Report"; Microsoft 2025, "Phi-4-Mini Technical Report").

Phi-3-mini-4k sees the latest 2,047 positions, as transformers has it; llama.cpp passes over what its file says of that.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from . import block, rotary_config
from .block import wire
from .rope import settings_of_hf
from .tensors import Fused, TensorSpec

__all__ = ["Config", "wire"]

_USUAL_CONTEXT = 4096
"""`original_max_position_embeddings` where config.json does not say."""


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.Partial, rotary_config.Windowed, rotary_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "phi3"
    READS: ClassVar[frozenset[str]] = frozenset({"partial_rotary_factor", "sliding_window"})
    GGUF_READS: ClassVar[frozenset[str]] = frozenset({"attention.sliding_window"})

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        settings = settings_of_hf({"original_max_position_embeddings": _USUAL_CONTEXT, **values})
        if settings["rope_type"] in ("su", "yarn"):  # what the first of them called it
            settings["rope_type"] = "longrope"
        return super().hf_fields({**values, "rope_parameters": settings, "rope_scaling": None})

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return block.tensors(self)

    def fused(self) -> Iterator[Fused]:
        """Those that files have as one."""
        for layer in range(self.num_hidden_layers):
            gate, up, _ = block.gated(self, layer)
            prefix, gguf = f"model.layers.{layer}.", f"blk.{layer}."
            yield Fused(prefix + "self_attn.qkv_proj.weight", tuple(block.projections(self, layer)),
                        gguf + "attn_qkv.weight")
            yield Fused(prefix + "mlp.gate_up_proj.weight", (gate, up), gguf + "ffn_up.weight")
