"""DeepSeek's first mixtures of experts: Llama's block with many small experts, and some that all tokens share, which
are one feed-forward part; the first layers have no experts (Dai et al. 2024, "DeepSeekMoE")."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from . import expert_block, expert_config, llama
from .config import check_whole
from .expert_block import wire
from .tensors import TensorSpec
from .unread import reader_of

__all__ = ["Config", "wire"]


@dataclass(frozen=True, kw_only=True)
class Config(expert_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json, but for `dense_intermediate_size`, which is
    `intermediate_size` there."""

    architecture: ClassVar[str] = "deepseek"
    READS: ClassVar[frozenset[str]] = expert_config.Config.READS | {
        "moe_intermediate_size", "n_routed_experts", "n_shared_experts", "first_k_dense_replace"}
    GGUF_READS: ClassVar[frozenset[str]] = expert_config.Config.GGUF_READS | {
        "expert_shared_count", "leading_dense_block_count"}
    gguf_rope_pairing: ClassVar[Literal["half", "interleaved"]] = llama.Config.gguf_rope_pairing
    hf_neurons: ClassVar[str] = "moe_intermediate_size"
    gguf_neurons: ClassVar[str] = "expert_feed_forward_length"
    gguf_norm_topk_prob: ClassVar[bool] = False

    n_shared_experts: int
    first_k_dense_replace: int
    """How many layers have no experts."""
    dense_intermediate_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_shared_experts", "dense_intermediate_size"):
            check_whole(name, getattr(self, name))
        if type(self.first_k_dense_replace) is not int or not 0 <= self.first_k_dense_replace < self.num_hidden_layers:
            raise ValueError(f"first_k_dense_replace is {self.first_k_dense_replace!r}, expected a number of layers "
                             f"below {self.num_hidden_layers}")

    @property
    def shared_size(self) -> int:
        return self.n_shared_experts * self.intermediate_size

    @property
    def dense_layers(self) -> int:
        return self.first_k_dense_replace

    @property
    def dense_size(self) -> int:
        return self.dense_intermediate_size

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().hf_fields({**values, "num_experts": values["n_routed_experts"]}),
                "n_shared_experts": values["n_shared_experts"],
                "first_k_dense_replace": values["first_k_dense_replace"],
                "dense_intermediate_size": values["intermediate_size"]}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        get = reader_of(metadata, cls.architecture)
        return {**super().gguf_fields(metadata, tensors, rope_tensors),
                "n_shared_experts": int(get("expert_shared_count")),
                "first_k_dense_replace": int(get("leading_dense_block_count", 0)),
                "dense_intermediate_size": int(get("feed_forward_length"))}

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return expert_block.tensors(self)
