"""What Gemma 2 and 3 share: norms before and after attention and feed-forward part, windows of some layers, tanh caps.

A layer's attention sees all positions before, or a window of the latest ones ("Longformer", Beltagy et al. 2020).
Embeddings are multiplied by sqrt(hidden_size), in float32 as llama.cpp does, and as transformers where weights are
float32; in bfloat16 transformers rounds that number. Norms multiply by 1 + w, where safetensors files hold w; GGUF
files hold the sum, and so do bundles.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np

from . import block, config
from .block import of_layer
from .config import check_positive, check_whole, hidden_act
from .network import Network
from .tensors import Role, TensorSpec

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json. Raises ValueError for such as no model has."""

    hf_norm_offset: ClassVar[float] = 1.0
    head_norms: ClassVar[bool] = False
    """Whether each head's query and key has a norm."""
    pattern: ClassVar[int]
    """Every so many layers one sees all positions, where a file does not say which."""
    widest: ClassVar[int]
    """Layers of the one model that divides scores by another number than head_dim; its GGUF file does not say so."""
    hf_defaults: ClassVar[Mapping[str, Any]]
    """What config.json leaves out where it is so: transformers' defaults."""
    caps: ClassVar[tuple[float | None, float | None]] = None, None
    """Of scores and logits, where a GGUF file does not say."""

    rms_norm_eps: float
    rope_theta: float
    query_pre_attn_scalar: float
    """Scores of attention are divided by its root."""
    sliding_window: int
    layer_types: tuple[str, ...]
    """SLIDING or FULL for each layer."""
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rms_norm_eps", "rope_theta", "query_pre_attn_scalar"):
            check_positive(name, getattr(self, name))
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        check_whole("sliding_window", self.sliding_window)
        if len(self.layer_types) < self.num_hidden_layers or not {SLIDING, FULL}.issuperset(self.layer_types):
            raise ValueError(f"layer_types is not {SLIDING!r} or {FULL!r} for each of {self.num_hidden_layers} layers")
        if not all((table < config.MAX_FREQUENCY).all() for table in self.rope_tables()):
            raise ValueError(f"rope_theta {self.rope_theta} gives impossible rotary frequencies")

    @property
    def norm_epsilon(self) -> float:
        return self.rms_norm_eps

    @property
    def rotates_neighbours(self) -> bool:
        return False

    @property
    def attention_scale(self) -> float:
        return self.query_pre_attn_scalar ** -0.5

    @property
    def attention_softcap(self) -> float | None:
        return self.attn_logit_softcapping

    @property
    def logit_softcap(self) -> float | None:
        return self.final_logit_softcapping

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self.layer_types[layer] == SLIDING else None

    def rope_frequencies(self) -> np.ndarray:
        return frequencies(self.rope_theta, self.head_dim)

    @classmethod
    def hf_rope(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of rotary positions. Raises KeyError or ValueError."""
        rope = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
        require_type(rope, "default")
        return {"rope_theta": float(rope.get("rope_theta") or values.get("rope_theta") or 10000.0)}

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        values = {**cls.hf_defaults, **values}
        if values.get("attention_bias"):
            raise ValueError("biases in attention are not supported")
        if values.get("use_bidirectional_attention"):
            raise ValueError("attention to what follows is not supported")
        layers, pattern = values["num_hidden_layers"], values.get("sliding_window_pattern", cls.pattern)
        check_whole("num_hidden_layers", layers)
        check_whole("sliding_window_pattern", pattern)
        return cls(
            hidden_size=values["hidden_size"],
            intermediate_size=values["intermediate_size"],
            num_hidden_layers=layers,
            num_attention_heads=values["num_attention_heads"],
            num_key_value_heads=values["num_key_value_heads"],
            head_dim=values["head_dim"],
            vocab_size=values["vocab_size"],
            max_position_embeddings=values["max_position_embeddings"],
            tie_word_embeddings=bool(values.get("tie_word_embeddings", True)),
            hidden_act=hidden_act(values.get("hidden_activation") or "gelu_pytorch_tanh"),
            rms_norm_eps=float(values["rms_norm_eps"]),
            query_pre_attn_scalar=float(values["query_pre_attn_scalar"]),
            sliding_window=values["sliding_window"],
            layer_types=tuple(values.get("layer_types") or _types(layers, pattern)),
            attn_logit_softcapping=_optional(values.get("attn_logit_softcapping")),
            final_logit_softcapping=_optional(values.get("final_logit_softcapping")),
            **cls.hf_rope(values))

    @classmethod
    def gguf_rope(cls, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The same of GGUF metadata."""
        if (kind := metadata.get(f"{cls.architecture}.rope.scaling.type", "none")) != "none":
            raise ValueError(f"rope scaling of type {kind!r} is not known; known: none")
        return {"rope_theta": float(metadata.get(f"{cls.architecture}.rope.freq_base", 10000.0))}

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, vocab_size: int, tie_word_embeddings: bool,
                  tensors: Set[str] = frozenset(),
                  rope_tensors: Mapping[str, tuple[float, ...]] = MappingProxyType({})) -> Self:
        def get(name: str, default: Any = None) -> Any:
            key = f"{cls.architecture}.{name}"
            return metadata[key] if default is None else metadata.get(key, default)

        if rope_tensors:
            raise ValueError(f"{cls.architecture} has no {min(rope_tensors)} tensor")
        layers, heads = int(get("block_count")), int(get("attention.head_count"))
        check_whole("block_count", layers)
        check_whole("attention.head_count", heads)
        hidden_size, head_dim = int(get("embedding_length")), int(get("attention.key_length", 256))
        pattern = int(get("attention.sliding_window_pattern", cls.pattern))
        check_whole("attention.sliding_window_pattern", pattern)
        if (values := int(get("attention.value_length", head_dim))) != head_dim:
            raise ValueError(f"values of {values} components and keys of {head_dim} are not supported")
        return cls(
            hidden_size=hidden_size,
            intermediate_size=int(get("feed_forward_length")),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=int(get("attention.head_count_kv", heads)),
            head_dim=head_dim,
            vocab_size=vocab_size,
            max_position_embeddings=int(get("context_length")),
            tie_word_embeddings=tie_word_embeddings,
            hidden_act="gelu_tanh",
            rms_norm_eps=float(get("attention.layer_norm_rms_epsilon")),
            query_pre_attn_scalar=float(hidden_size // heads if layers == cls.widest else head_dim),
            sliding_window=int(get("attention.sliding_window")),
            layer_types=_types(layers, pattern),
            attn_logit_softcapping=_optional(metadata.get(f"{cls.architecture}.attn_logit_softcapping", cls.caps[0])),
            final_logit_softcapping=_optional(metadata.get(f"{cls.architecture}.final_logit_softcapping", cls.caps[1])),
            **cls.gguf_rope(metadata))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        if not isinstance(values["layer_types"], list):
            raise ValueError("layer_types is not a list")
        return super().from_json({**values, "layer_types": tuple(values["layer_types"])})

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return block.around(self, (spec for layer in range(self.num_hidden_layers) for spec in _layer(self, layer)))


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _types(layers: int, pattern: int) -> tuple[str, ...]:
    return tuple(SLIDING if (layer + 1) % pattern else FULL for layer in range(layers))


def require_type(rope: Mapping[str, Any], *known: str) -> str:
    """What kind of rotary positions config.json asks for. Raises ValueError for any but those that are known."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in known:
        raise ValueError(f"rope scaling of type {kind!r} is not known; known: {', '.join(known)}")
    return str(kind)


def frequencies(theta: float, head_dim: int) -> np.ndarray:
    """Radians per position of each pair of components, float64 of shape (head_dim / 2,)."""
    with np.errstate(all="ignore"):
        return theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


def _layer(config: Config, layer: int) -> Iterable[TensorSpec]:
    hidden_size = config.hidden_size
    *before, output = block.attention(config, layer)
    yield from before
    if config.head_norms:
        for part, role in (("q", Role.QUERY_NORM), ("k", Role.KEY_NORM)):
            yield of_layer(layer, f"self_attn.{part}_norm.weight", (config.head_dim,), role, f"attn_{part}_norm.weight")
    yield output
    for name, gguf in (("post_attention_layernorm", "post_attention_norm"), ("pre_feedforward_layernorm", "ffn_norm")):
        yield of_layer(layer, f"{name}.weight", (hidden_size,), Role.NORM, f"{gguf}.weight")
    yield from (spec for spec in block.feed_forward(config, layer) if spec.role is not Role.NORM)
    yield of_layer(layer, "post_feedforward_layernorm.weight", (hidden_size,), Role.NORM, "post_ffw_norm.weight")


def wire(config: Config, net: Network) -> None:
    """The whole model, top to bottom, as operations on a network."""
    x = net.embedding("model.embed_tokens.weight", scale=config.hidden_size ** 0.5)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        h = net.norm(x, prefix + "input_layernorm.weight")
        qkv = net.linear(h, [f"{prefix}self_attn.{part}_proj" for part in "qkv"])
        if config.head_norms:
            net.head_norms(qkv, prefix + "self_attn.q_norm.weight", prefix + "self_attn.k_norm.weight")
        y = net.linear(net.attention(qkv, layer), [prefix + "self_attn.o_proj"])
        net.add(y, to=x, norm=prefix + "post_attention_layernorm.weight")
        y = net.feed_forward(net.norm(x, prefix + "pre_feedforward_layernorm.weight"), layer)
        net.add(y, to=x, norm=prefix + "post_feedforward_layernorm.weight")
    net.logits(x, "model.norm.weight", "model.embed_tokens" if config.tie_word_embeddings else "lm_head")
