"""The Llama family: Llama 1 to 3, SmolLM2, and everything else that calls itself `llama`.

A decoder of pre-normalised blocks: RMSNorm, grouped-query attention with rotary positions, RMSNorm, SwiGLU.
Touvron et al. 2023, "LLaMA" and "Llama 2"; Llama 3's rope scaling is Dubey et al. 2024, "The Llama 3 Herd of Models".
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from .network import Network

_MAX_FREQUENCY = 1e9
"""Radians per position. The highest of every real model is 1."""


def _check_whole(name: str, value: Any) -> None:
    if type(value) is not int or not 1 <= value <= 1 << 24:
        raise ValueError(f"{name} is {value!r}, expected a whole number from 1 to {1 << 24}")


def _check_positive(name: str, value: Any) -> None:
    if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} is {value!r}, expected a number above 0")


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's scaling of the rotary frequencies (config.json `rope_scaling` with `rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            _check_positive(f"rope scaling's {name}", getattr(self, name))
        _check_whole("rope scaling's original_max_position_embeddings", self.original_max_position_embeddings)
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(f"rope scaling's low_freq_factor {self.low_freq_factor} is not below its high_freq_factor "
                             f"{self.high_freq_factor}")


@dataclass(frozen=True)
class Config:
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "llama"
    attention_bias: ClassVar[bool] = False

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_pairing: Literal["half", "interleaved"]
    """Which two components of a head rotate together: i and i + head_dim/2, or 2i and 2i + 1."""
    tie_word_embeddings: bool
    rope_scaling: RopeScaling | None = None
    rope_frequency_factors: tuple[float, ...] | None = None
    """Divisors of the rotary frequencies, head_dim/2 of them (GGUF tensor `rope_freqs.weight`)."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"):
            _check_whole(name, getattr(self, name))
        for name in ("rms_norm_eps", "rope_theta"):
            _check_positive(name, getattr(self, name))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"{self.num_attention_heads} attention heads are not a multiple of "
                             f"{self.num_key_value_heads} key-value heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, expected an even number")
        if self.rope_pairing not in ("half", "interleaved"):
            raise ValueError(f"rope_pairing is {self.rope_pairing!r}, expected 'half' or 'interleaved'")
        if not isinstance(self.tie_word_embeddings, bool):
            raise ValueError(f"tie_word_embeddings is {self.tie_word_embeddings!r}, expected true or false")
        if (factors := self.rope_frequency_factors) is not None:
            if len(factors) != self.head_dim // 2:
                raise ValueError(f"{len(factors)} rope frequency factors, expected {self.head_dim // 2}")
            for factor in factors:
                _check_positive("a rope frequency factor", factor)
        with np.errstate(all="ignore"):
            if not (self.rope_frequencies() < _MAX_FREQUENCY).all():  # or NaN
                raise ValueError(f"rope_theta {self.rope_theta} and its scaling give impossible rotary frequencies")

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """From the JSON object in Hugging Face's config.json. Raises KeyError or ValueError."""
        heads = config["num_attention_heads"]
        rope = config.get("rope_parameters") or {}  # transformers 5 puts theta and scaling here
        scaling = config.get("rope_scaling") or rope
        kind = (scaling.get("rope_type") or scaling.get("type") or "default") if scaling else "default"
        if kind not in ("default", "llama3"):
            raise ValueError(f"rope scaling of type {kind!r} is not known; known: default, llama3")
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"activation {config['hidden_act']!r} is not known; known: silu")
        if config.get("mlp_bias"):
            raise ValueError("biases in the feed-forward part are not supported")
        if config.get("use_sliding_window"):
            raise ValueError("sliding-window attention is not supported")
        if bool(config.get("attention_bias", cls.attention_bias)) != cls.attention_bias:
            raise ValueError(f"attention_bias {config['attention_bias']} is not what {cls.architecture} has")
        return cls(
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab_size=config["vocab_size"],
            max_position_embeddings=config["max_position_embeddings"],
            rms_norm_eps=float(config["rms_norm_eps"]),
            rope_theta=float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
            rope_pairing="half",
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            rope_scaling=None if kind == "default" else RopeScaling(
                factor=float(scaling["factor"]),
                low_freq_factor=float(scaling["low_freq_factor"]),
                high_freq_factor=float(scaling["high_freq_factor"]),
                original_max_position_embeddings=int(scaling["original_max_position_embeddings"])),
        )

    gguf_rope_pairing: ClassVar[Literal["half", "interleaved"]] = "interleaved"
    """llama.cpp's conversion reorders the rows of Llama's q and k projections so that neighbours rotate together."""

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, vocab_size: int, tie_word_embeddings: bool,
                  rope_frequency_factors: tuple[float, ...] | None = None) -> Self:
        """From GGUF metadata (`llama.block_count` and so on). Raises KeyError or ValueError."""

        def get(name: str, default: Any = None) -> Any:
            key = f"{cls.architecture}.{name}"
            return metadata[key] if default is None else metadata.get(key, default)

        kind = metadata.get(f"{cls.architecture}.rope.scaling.type", "none")
        if kind != "none":
            raise ValueError(f"rope scaling of type {kind!r} is not known; known: none, Llama 3's rope_freqs tensor")
        heads = int(get("attention.head_count"))
        head_dim = int(get("attention.key_length", int(get("embedding_length")) // heads))
        if int(get("rope.dimension_count", head_dim)) != head_dim:
            raise ValueError("rotary positions over a part of the head are not supported")
        return cls(
            hidden_size=int(get("embedding_length")),
            intermediate_size=int(get("feed_forward_length")),
            num_hidden_layers=int(get("block_count")),
            num_attention_heads=heads,
            num_key_value_heads=int(get("attention.head_count_kv", heads)),
            head_dim=head_dim,
            vocab_size=vocab_size,
            max_position_embeddings=int(get("context_length")),
            rms_norm_eps=float(get("attention.layer_norm_rms_epsilon")),
            rope_theta=float(get("rope.freq_base", 10000.0)),
            rope_pairing=cls.gguf_rope_pairing,
            tie_word_embeddings=tie_word_embeddings,
            rope_frequency_factors=rope_frequency_factors,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From what `to_json` gave. Raises TypeError or ValueError."""
        values = dict(values)
        if values.get("rope_scaling") is not None:
            values["rope_scaling"] = RopeScaling(**values["rope_scaling"])
        if values.get("rope_frequency_factors") is not None:
            values["rope_frequency_factors"] = tuple(values["rope_frequency_factors"])
        return cls(**values)

    def rope_frequencies(self) -> np.ndarray:
        """Rotary angles per position, float64 of shape (head_dim / 2,)."""
        frequencies = self.rope_theta ** (-np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        if self.rope_frequency_factors is not None:
            frequencies = frequencies / np.array(self.rope_frequency_factors, dtype=np.float64)
        if (scaling := self.rope_scaling) is not None:
            wavelength = 2 * math.pi / frequencies
            low = scaling.original_max_position_embeddings / scaling.low_freq_factor
            high = scaling.original_max_position_embeddings / scaling.high_freq_factor
            smooth = ((scaling.original_max_position_embeddings / wavelength - scaling.low_freq_factor)
                      / (scaling.high_freq_factor - scaling.low_freq_factor))
            between = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
            frequencies = np.where(wavelength > low, frequencies / scaling.factor,
                                   np.where(wavelength < high, frequencies, between))
        return frequencies

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a model of these hyper-parameters has, by canonical (Hugging Face) name."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            shapes[prefix + "input_layernorm.weight"] = (self.hidden_size,)
            for name, rows in (("q", self.query_size), ("k", self.key_value_size), ("v", self.key_value_size)):
                shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, self.hidden_size)
                if self.attention_bias:
                    shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
            shapes[prefix + "self_attn.o_proj.weight"] = (self.hidden_size, self.query_size)
            shapes[prefix + "post_attention_layernorm.weight"] = (self.hidden_size,)
            shapes[prefix + "mlp.gate_proj.weight"] = (self.intermediate_size, self.hidden_size)
            shapes[prefix + "mlp.up_proj.weight"] = (self.intermediate_size, self.hidden_size)
            shapes[prefix + "mlp.down_proj.weight"] = (self.hidden_size, self.intermediate_size)
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes


def wire(config: Config, net: Network) -> None:
    """The whole model, top to bottom, as operations on a network."""
    x = net.embedding("model.embed_tokens.weight")
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        attention = prefix + "self_attn."
        h = net.norm(x, prefix + "input_layernorm.weight")
        qkv = net.linear(h, [f"{attention}{part}_proj" for part in "qkv"], bias=config.attention_bias)
        h = net.attention(qkv, layer)
        net.linear(h, [attention + "o_proj"], add_to=x)
        h = net.norm(x, prefix + "post_attention_layernorm.weight")
        net.feed_forward(h, layer, add_to=x)
    net.logits(x, "model.norm.weight", "model.embed_tokens" if config.tie_word_embeddings else "lm_head")


GGUF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.{layer}.attn_norm.weight": "model.layers.{layer}.input_layernorm.weight",
    "blk.{layer}.attn_q.weight": "model.layers.{layer}.self_attn.q_proj.weight",
    "blk.{layer}.attn_k.weight": "model.layers.{layer}.self_attn.k_proj.weight",
    "blk.{layer}.attn_v.weight": "model.layers.{layer}.self_attn.v_proj.weight",
    "blk.{layer}.attn_q.bias": "model.layers.{layer}.self_attn.q_proj.bias",
    "blk.{layer}.attn_k.bias": "model.layers.{layer}.self_attn.k_proj.bias",
    "blk.{layer}.attn_v.bias": "model.layers.{layer}.self_attn.v_proj.bias",
    "blk.{layer}.attn_output.weight": "model.layers.{layer}.self_attn.o_proj.weight",
    "blk.{layer}.ffn_norm.weight": "model.layers.{layer}.post_attention_layernorm.weight",
    "blk.{layer}.ffn_gate.weight": "model.layers.{layer}.mlp.gate_proj.weight",
    "blk.{layer}.ffn_up.weight": "model.layers.{layer}.mlp.up_proj.weight",
    "blk.{layer}.ffn_down.weight": "model.layers.{layer}.mlp.down_proj.weight",
}
"""GGUF tensor names and the canonical names they stand for."""
