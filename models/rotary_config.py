"""The hyper-parameters of Llama and its kin: besides what every dense decoder has, RMSNorm and rotary positions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from . import config
from .config import check_positive, check_whole, hidden_act

_MAX_FREQUENCY = 1e9
"""Radians per position. The highest of every real model is 1."""


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's scaling of the rotary frequencies (config.json `rope_scaling` with `rope_type: llama3`; Dubey et al.
    2024, "The Llama 3 Herd of Models")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            check_positive(f"rope scaling's {name}", getattr(self, name))
        check_whole("rope scaling's original_max_position_embeddings", self.original_max_position_embeddings)
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(f"rope scaling's low_freq_factor {self.low_freq_factor} is not below its high_freq_factor "
                             f"{self.high_freq_factor}")


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json. Raises ValueError for such as no model has."""

    attention_bias: ClassVar[bool] = False
    """Whether the q, k and v projections have biases."""
    gguf_rope_pairing: ClassVar[Literal["half", "interleaved"]] = "half"
    """`rope_pairing` in the family's GGUF files."""

    rms_norm_eps: float
    rope_theta: float
    rope_pairing: Literal["half", "interleaved"]
    """Which two components of a head rotate together: i and i + rotary_dim/2, or 2i and 2i + 1."""
    rope_scaling: RopeScaling | None = None
    rope_frequency_factors: tuple[float, ...] | None = None
    """Divisors of the rotary frequencies, rotary_dim/2 of them (GGUF tensor `rope_freqs.weight`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rms_norm_eps", "rope_theta"):
            check_positive(name, getattr(self, name))
        if self.rope_pairing not in ("half", "interleaved"):
            raise ValueError(f"rope_pairing is {self.rope_pairing!r}, expected 'half' or 'interleaved'")
        if (factors := self.rope_frequency_factors) is not None:
            if len(factors) != self.rotary_dim // 2:
                raise ValueError(f"{len(factors)} rope frequency factors, expected {self.rotary_dim // 2}")
            for factor in factors:
                check_positive("a rope frequency factor", factor)
        with np.errstate(all="ignore"):
            if not (self.rope_frequencies() < _MAX_FREQUENCY).all():  # or NaN
                raise ValueError(f"rope_theta {self.rope_theta} and its scaling give impossible rotary frequencies")

    @property
    def norm_epsilon(self) -> float:
        return self.rms_norm_eps

    @property
    def rotates_neighbours(self) -> bool:
        return self.rope_pairing == "interleaved"

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        heads = values["num_attention_heads"]
        rope = values.get("rope_parameters") or {}  # transformers 5 puts theta and scaling here
        scaling = values.get("rope_scaling") or rope
        kind = (scaling.get("rope_type") or scaling.get("type") or "default") if scaling else "default"
        if kind not in ("default", "llama3"):
            raise ValueError(f"rope scaling of type {kind!r} is not known; known: default, llama3")
        if values.get("mlp_bias"):
            raise ValueError("biases in the feed-forward part are not supported")
        if values.get("use_sliding_window"):
            raise ValueError("sliding-window attention is not supported")
        if bool(values.get("attention_bias", cls.attention_bias)) != cls.attention_bias:
            raise ValueError(f"attention_bias {values['attention_bias']} is not what {cls.architecture} has")
        return cls(
            hidden_size=values["hidden_size"],
            intermediate_size=values["intermediate_size"],
            num_hidden_layers=values["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            vocab_size=values["vocab_size"],
            max_position_embeddings=values["max_position_embeddings"],
            rms_norm_eps=float(values["rms_norm_eps"]),
            rope_theta=float(values.get("rope_theta") or rope.get("rope_theta") or 10000.0),
            rope_pairing="half",
            tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
            hidden_act=hidden_act(values.get("hidden_act", "silu")),
            rope_scaling=None if kind == "default" else RopeScaling(
                factor=float(scaling["factor"]),
                low_freq_factor=float(scaling["low_freq_factor"]),
                high_freq_factor=float(scaling["high_freq_factor"]),
                original_max_position_embeddings=int(scaling["original_max_position_embeddings"])),
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, vocab_size: int, tie_word_embeddings: bool,
                  rope_frequency_factors: tuple[float, ...] | None = None) -> Self:
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

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        values = dict(values)
        if values.get("rope_scaling") is not None:
            values["rope_scaling"] = RopeScaling(**values["rope_scaling"])
        if values.get("rope_frequency_factors") is not None:
            values["rope_frequency_factors"] = tuple(values["rope_frequency_factors"])
        return super().from_json(values)

    def rope_frequencies(self) -> np.ndarray:
        frequencies = self.rope_theta ** (-np.arange(0, self.rotary_dim, 2, dtype=np.float64) / self.rotary_dim)
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
