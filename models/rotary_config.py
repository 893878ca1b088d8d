"""Hyper-parameters of families with rotary positions; and those of Llama and its kin, which have RMSNorm besides."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import numpy as np

from . import config, rope
from .config import MAX_FREQUENCY, check_positive, check_whole, hidden_act
from .rope import RopeScaling
from .unread import reader_of, refuse_unread, refuse_unread_gguf


@dataclass(frozen=True, kw_only=True)
class Rotary(config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json. Raises ValueError for such as no model has."""

    READS: ClassVar[frozenset[str]] = frozenset()
    """The settings of `unread.NEUTRAL` that the family reads."""
    GGUF_READS: ClassVar[frozenset[str]] = frozenset()
    """Those of `unread.GGUF_NEUTRAL`."""
    gguf_rope_pairing: ClassVar[Literal["half", "interleaved"]] = "half"
    """`rope_pairing` in the family's GGUF files."""
    gguf_act: ClassVar[str] = "silu"
    """`hidden_act` in the family's GGUF files, which do not say."""
    usual_theta: ClassVar[float] = 10000.0
    """`rope_theta` where config.json does not say."""
    usually_tied: ClassVar[bool] = False
    """`tie_word_embeddings` where config.json does not say."""
    usual_share: ClassVar[float] = 1.0
    """The share of a head that is rotated, where config.json does not say."""

    rope_theta: float
    rope_pairing: Literal["half", "interleaved"]
    """Which two components of a head rotate together: i and i + rotary_dim/2, or 2i and 2i + 1."""
    rope_scaling: RopeScaling | None = None
    rope_frequency_factors: tuple[float, ...] | None = None
    """Divisors of the rotary frequencies, rotary_dim/2 of them (GGUF tensor `rope_freqs.weight`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("rope_theta", self.rope_theta)
        if self.rope_pairing not in ("half", "interleaved"):
            raise ValueError(f"rope_pairing is {self.rope_pairing!r}, expected 'half' or 'interleaved'")
        if self.rope_frequency_factors is not None:
            rope.check_factors("rope_frequency_factors", self.rope_frequency_factors, self.rotary_dim // 2)
        try:
            with np.errstate(all="ignore"):
                possible = bool((self.rope_frequencies() < MAX_FREQUENCY).all())  # not NaN
        except ArithmeticError:
            possible = False
        if not possible:
            raise ValueError(f"rope_theta {self.rope_theta} and its scaling give impossible rotary frequencies")

    @property
    def rotates_neighbours(self) -> bool:
        return self.rope_pairing == "interleaved"

    @property
    def rope_attention_factor(self) -> float:
        return 1.0 if self.rope_scaling is None else self.rope_scaling.magnitude

    def rope_frequencies(self) -> np.ndarray:
        frequencies = rope.plain_frequencies(self.rope_theta, self.rotary_dim)
        if self.rope_frequency_factors is not None:
            frequencies = frequencies / np.array(self.rope_frequency_factors, dtype=np.float64)
        return frequencies if self.rope_scaling is None else self.rope_scaling.scaled(frequencies, self.rope_theta)

    def for_context(self, context: int) -> Self:
        if not isinstance(self.rope_scaling, rope.LongRope):
            return self
        scaling, most = self.rope_scaling.for_context(context), self.max_position_embeddings
        if not scaling.long:
            most = min(most, scaling.original_max_position_embeddings)
        return replace(self, rope_scaling=scaling, max_position_embeddings=most)

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that a config.json gives. Raises KeyError or ValueError."""
        refuse_unread(values, cls.READS, cls.architecture)
        heads, settings = values["num_attention_heads"], rope.settings_of_hf(values)
        head_dim = values.get("head_dim") or values["hidden_size"] // heads
        return {
            "hidden_size": values["hidden_size"], "intermediate_size": values["intermediate_size"],
            "num_hidden_layers": values["num_hidden_layers"], "num_attention_heads": heads,
            "num_key_value_heads": values.get("num_key_value_heads") or heads, "head_dim": head_dim,
            "vocab_size": values["vocab_size"], "max_position_embeddings": values["max_position_embeddings"],
            "rope_theta": float(settings.get("rope_theta") or cls.usual_theta), "rope_pairing": "half",
            "rope_scaling": rope.scaling_of_hf(settings, values["max_position_embeddings"]),
            "tie_word_embeddings": bool(values.get("tie_word_embeddings", cls.usually_tied)),
            "hidden_act": hidden_act(values.get("hidden_act", "silu")),
            **cls._rotated(head_dim, int(head_dim * settings.get("partial_rotary_factor", cls.usual_share)))}

    @classmethod
    def _rotated(cls, head_dim: int, rotary_dim: int) -> dict[str, Any]:
        """The field that says how much of a head is rotated, in families that have it. Raises ValueError."""
        if rotary_dim != head_dim:
            raise ValueError(f"rotary positions over {rotary_dim} of a head's {head_dim} components are not known for "
                             f"the family {cls.architecture}")
        return {}

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        return cls(**cls.hf_fields(values))

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        """The fields that a GGUF file gives. tensors: names of all. Raises KeyError or ValueError."""
        get = reader_of(metadata, cls.architecture)
        refuse_unread_gguf(metadata, cls.GGUF_READS, cls.architecture)
        heads, hidden_size = int(get("attention.head_count")), int(get("embedding_length"))
        head_dim = int(get("attention.key_length", hidden_size // heads))
        if (values := int(get("attention.value_length", head_dim))) != head_dim:
            raise ValueError(f"values of {values} components and keys of {head_dim} are not supported")
        return {
            "hidden_size": hidden_size, "intermediate_size": int(get("feed_forward_length")),
            "num_hidden_layers": int(get("block_count")), "num_attention_heads": heads,
            "num_key_value_heads": int(get("attention.head_count_kv", heads)), "head_dim": head_dim,
            "max_position_embeddings": int(get("context_length")),
            "hidden_act": cls.gguf_act,
            "rope_theta": float(get("rope.freq_base", 10000.0)), "rope_pairing": cls.gguf_rope_pairing,
            "rope_scaling": rope.scaling_of_gguf(metadata, cls.architecture, rope_tensors),
            "rope_frequency_factors": rope_tensors.get(rope.FACTORS),
            **cls._rotated(head_dim, int(get("rope.dimension_count", head_dim)))}

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, vocab_size: int, tie_word_embeddings: bool,
                  tensors: Set[str] = frozenset(),
                  rope_tensors: Mapping[str, tuple[float, ...]] = MappingProxyType({})) -> Self:
        return cls(vocab_size=vocab_size, tie_word_embeddings=tie_word_embeddings,
                   **cls.gguf_fields(metadata, tensors, rope_tensors))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        values = dict(values)
        if values.get("rope_scaling") is not None:
            values["rope_scaling"] = rope.scaling_of_json(values["rope_scaling"])
        if isinstance(values.get("rope_frequency_factors"), list):
            values["rope_frequency_factors"] = tuple(values["rope_frequency_factors"])
        return super().from_json(values)


@dataclass(frozen=True, kw_only=True)
class Partial(Rotary):
    """Of families that rotate only the first components of a head."""

    rotary_ndims: int
    """How many."""

    def __post_init__(self) -> None:
        check_whole("rotary_ndims", self.rotary_ndims)
        super().__post_init__()

    @property
    def rotary_dim(self) -> int:
        return self.rotary_ndims

    @classmethod
    def _rotated(cls, head_dim: int, rotary_dim: int) -> dict[str, Any]:
        return {"rotary_ndims": rotary_dim}


@dataclass(frozen=True, kw_only=True)
class Windowed(Rotary):
    """Of families whose layers may see only the latest positions ("Longformer", Beltagy et al. 2020)."""

    sliding_window: int | None
    """How many of them, itself among them, a token sees; None for all."""
    full_layers: tuple[int, ...] = ()
    """Numbers of layers that see all positions nevertheless."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sliding_window is not None:
            check_whole("sliding_window", self.sliding_window)
        if not isinstance(self.full_layers, tuple) or {*map(type, self.full_layers)} - {int}:
            raise ValueError(f"full_layers is {self.full_layers!r}, expected numbers of layers")

    def window(self, layer: int) -> int | None:
        return None if layer in self.full_layers else self.sliding_window

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        found, types = super().hf_fields(values), values.get("layer_types") or []
        if not {"sliding_attention", "full_attention"}.issuperset(types):
            raise ValueError(f"layer_types is {types!r}, expected sliding_attention and full_attention")
        full = tuple(layer for layer, kind in enumerate(types) if kind == "full_attention")
        window = None if types and len(full) == len(types) else values.get("sliding_window")
        return {**found, **_window(window, found["max_position_embeddings"], full)}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        found = super().gguf_fields(metadata, tensors, rope_tensors)
        window = reader_of(metadata, cls.architecture)("attention.sliding_window", 0)
        return {**found, **_window(window or None, found["max_position_embeddings"], ())}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return super().from_json({**values, "full_layers": tuple(values.get("full_layers", ()))})


@dataclass(frozen=True, kw_only=True)
class SwitchedWindow(Windowed):
    """Of families of which some models have a window in some layers, and say so in `use_sliding_window`; their GGUF
    files say nothing of it, and llama.cpp computes them without."""

    SWITCH: ClassVar[frozenset[str]] = frozenset({"use_sliding_window", "sliding_window", "layer_types"})
    """What `READS` has for it."""
    LATER: ClassVar[frozenset[str]] = config.Config.LATER | {"sliding_window", "full_layers"}

    sliding_window: int | None = None

    @classmethod
    def windowed(cls, layer: int, values: Mapping[str, Any]) -> bool:
        """Whether a layer has the window in a config.json that has no `layer_types`. Raises ValueError."""
        start = values.get("max_window_layers", 28)  # as transformers takes it where the file does not say
        if type(start) is not int:
            raise ValueError(f"max_window_layers is {start!r}, expected a whole number")
        return layer >= start

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        types = values.get("layer_types")
        if not values.get("use_sliding_window"):
            if types and "sliding_attention" in types:
                raise ValueError("layer_types has layers with a window, and use_sliding_window is not true")
            return super().hf_fields({**values, "sliding_window": None})
        if types is None:
            check_whole("num_hidden_layers", layers := values["num_hidden_layers"])
            types = ["sliding_attention" if cls.windowed(layer, values) else "full_attention"
                     for layer in range(layers)]
        return super().hf_fields({**values, "sliding_window": values.get("sliding_window") or None,
                                  "layer_types": types})


def _window(window: Any, positions: Any, full_layers: tuple[int, ...]) -> dict[str, Any]:
    """The fields of a window; one that is no shorter than all positions is none."""
    if window is None or window >= positions:
        return {"sliding_window": None}
    return {"sliding_window": window, "full_layers": full_layers}


@dataclass(frozen=True, kw_only=True)
class Config(Rotary):
    """Of Llama and its kin, whose norms are RMSNorm."""

    rms_norm_eps: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("rms_norm_eps", self.rms_norm_eps)

    @property
    def norm_epsilon(self) -> float:
        return self.rms_norm_eps

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().hf_fields(values), "rms_norm_eps": float(values["rms_norm_eps"])}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        get = reader_of(metadata, cls.architecture)
        return {**super().gguf_fields(metadata, tensors, rope_tensors),
                "rms_norm_eps": float(get("attention.layer_norm_rms_epsilon"))}
