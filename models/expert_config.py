"""The hyper-parameters that families of mixtures of experts have beside those of a dense one."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar

from . import rotary_config
from .config import check_whole
from .unread import reader_of

_MOST_EXPERTS = 1024


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json, but for `intermediate_size`, which is the number of an
    expert's neurons. Raises ValueError for such as no model has."""

    READS: ClassVar[frozenset[str]] = frozenset({"num_experts", "num_local_experts"})
    GGUF_READS: ClassVar[frozenset[str]] = frozenset({"expert_count"})
    hf_neurons: ClassVar[str] = "intermediate_size"
    """What the number of an expert's neurons is called in the family's config.json; gguf_neurons: in its GGUF files."""
    gguf_neurons: ClassVar[str] = "feed_forward_length"
    gguf_norm_topk_prob: ClassVar[bool] = True
    """`norm_topk_prob` in the family's GGUF files, which do not say."""
    biases: ClassVar[bool] = False
    """Whether router, experts and the matrix behind attention have biases."""
    shared_weighed: ClassVar[bool] = False
    """Whether tokens take as much of the part that all have as a matrix of one row says."""
    gguf_experts_norm: ClassVar[str] = "ffn_norm.weight"
    """The norm before a layer's router in the family's GGUF files."""
    query_key_norms: ClassVar[str | None] = None
    """Which norms queries and keys have before they are rotated: "head", one of each head; "whole", one of all heads
    together; or none."""

    num_experts: int
    """In each layer."""
    num_experts_per_tok: int
    norm_topk_prob: bool
    """Whether the weights of a token's experts are made to add up to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_experts", "num_experts_per_tok"):
            check_whole(name, getattr(self, name))
        if self.num_experts > _MOST_EXPERTS:
            raise ValueError(f"{self.num_experts} experts are more than {_MOST_EXPERTS}")
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(f"{self.num_experts_per_tok} experts for each token are more than the {self.num_experts} "
                             "that there are")
        if not isinstance(self.norm_topk_prob, bool):
            raise ValueError(f"norm_topk_prob is {self.norm_topk_prob!r}, expected true or false")

    @property
    def experts(self) -> int:
        return self.num_experts

    @property
    def experts_per_token(self) -> int:
        return self.num_experts_per_tok

    @property
    def shared_size(self) -> int:
        """The neurons of the feed-forward part that all tokens have beside their experts; 0 where there is none."""
        return 0

    @property
    def dense_size(self) -> int:
        """The neurons of layers that have no experts."""
        return 0

    @property
    def glu_columns(self) -> int:
        return max(self.shared_size, self.dense_size if self.dense_layers else 0)

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by."""
        return 1.0

    @property
    def residual_scale(self) -> float:
        """What attention, and the feed-forward part, add to the residual stream is multiplied by."""
        return 1.0

    @property
    def sparse(self) -> bool:
        """False: all neurons of an expert are computed, whatever its activation is."""
        return False

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """With its own, of which transformers 5 writes num_local_experts for num_experts. Raises KeyError or
        ValueError."""
        count, neurons = values.get("num_local_experts"), values[cls.hf_neurons]
        return {**super().hf_fields({**values, "intermediate_size": neurons}),
                "num_experts": values["num_experts"] if count is None else count,
                "num_experts_per_tok": values["num_experts_per_tok"],
                "norm_topk_prob": bool(values.get("norm_topk_prob", False))}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        get = reader_of(metadata, cls.architecture)
        metadata = {**metadata, f"{cls.architecture}.feed_forward_length": get(cls.gguf_neurons)}
        return {**super().gguf_fields(metadata, tensors, rope_tensors), "num_experts": int(get("expert_count")),
                "num_experts_per_tok": int(get("expert_used_count")), "norm_topk_prob": cls.gguf_norm_topk_prob}
