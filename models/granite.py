"""Granite 3 and 4 (dense): Llama's block, with numbers that embeddings, what attention and feed-forward part add,
attention and logits are multiplied by (Granite Team, IBM 2024, "Granite 3.0 Language Models")."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from . import block, rotary_config
from .config import check_positive
from .network import Network
from .tensors import TensorSpec
from .unread import reader_of

MULTIPLIERS = frozenset({"embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"})


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "granite"
    READS: ClassVar[frozenset[str]] = MULTIPLIERS
    GGUF_READS: ClassVar[frozenset[str]] = frozenset({"embedding_scale", "residual_scale", "attention.scale",
                                                      "logit_scale"})
    gguf_rope_pairing: ClassVar[Literal["half", "interleaved"]] = "interleaved"

    embedding_multiplier: float
    residual_multiplier: float
    attention_multiplier: float
    logits_scaling: float
    """What logits are divided by."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in sorted(MULTIPLIERS):
            check_positive(name, getattr(self, name))

    @property
    def attention_scale(self) -> float:
        return self.attention_multiplier

    @property
    def logit_scale(self) -> float:
        return 1 / self.logits_scaling

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().hf_fields(values), **{name: float(values.get(name, 1.0)) for name in MULTIPLIERS}}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        get, found = reader_of(metadata, cls.architecture), super().gguf_fields(metadata, tensors, rope_tensors)
        if not get("rope.scaling.finetuned", True):
            raise ValueError("a Granite without rotary positions is not known")
        return {**found, "embedding_multiplier": float(get("embedding_scale", 0.0)) or 1.0,
                "residual_multiplier": float(get("residual_scale", 0.0)) or 1.0,
                "attention_multiplier": float(get("attention.scale", 0.0)) or found["head_dim"] ** -0.5,
                "logits_scaling": float(get("logit_scale"))}

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return block.tensors(self)


def wire(config: Config, net: Network) -> None:
    """The whole model, top to bottom, as operations on a network."""
    x, scale = net.embedding("model.embed_tokens.weight", scale=config.embedding_multiplier), config.residual_multiplier
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        qkv = net.linear(net.norm(x, prefix + "input_layernorm.weight"), block.queries_keys_values(prefix))
        net.add(net.linear(net.attention(qkv, layer), [prefix + "self_attn.o_proj"]), to=x, scale=scale)
        h = net.norm(x, prefix + "post_attention_layernorm.weight")
        net.add(net.feed_forward(h, layer), to=x, scale=scale)
    block.logits(config, net, x)
