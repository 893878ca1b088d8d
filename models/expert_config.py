"""The hyper-parameters that families of mixtures of experts have beside those of a dense one."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from . import rotary_config
from .config import check_whole

_MOST_EXPERTS = 1024


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json, but for `intermediate_size`, which is the number of an
    expert's neurons. Raises ValueError for such as no model has."""

    dense: ClassVar[type[rotary_config.Config]]
    """The family that it is like, but for its experts."""
    gguf_name: ClassVar[str]
    """What its hyper-parameters' names begin with in GGUF files."""

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
    def sparse(self) -> bool:
        """False: all neurons of an expert are computed, whatever its activation is."""
        return False

    @classmethod
    def with_experts(cls, dense: rotary_config.Config, **own: Any) -> Self:
        """With the hyper-parameters of such a dense model, but for its own."""
        return cls(**{field.name: getattr(dense, field.name) for field in fields(dense)} | own)

    @classmethod
    def own_from_hf(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Its own hyper-parameters in the JSON object of config.json, where transformers 5 writes num_local_experts for
        num_experts. Raises KeyError."""
        count = values.get("num_local_experts")
        return {"num_experts": values["num_experts"] if count is None else count,
                "num_experts_per_tok": values["num_experts_per_tok"],
                "norm_topk_prob": bool(values.get("norm_topk_prob", False))}

    @classmethod
    def own_from_gguf(cls, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Its own hyper-parameters in GGUF metadata, but for norm_topk_prob. Raises KeyError."""
        own = {"num_experts": int(metadata[f"{cls.gguf_name}.expert_count"]),
               "num_experts_per_tok": int(metadata[f"{cls.gguf_name}.expert_used_count"])}
        if (neurons := metadata.get(f"{cls.gguf_name}.expert_feed_forward_length")) is not None:
            own["intermediate_size"] = int(neurons)
        return own
