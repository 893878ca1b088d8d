"""Rotary frequencies: by how many radians each pair of components turns from one position to the next, and the scalings
that let a model go on past the positions that it was first trained for.

Su et al. 2021, "RoFormer". The scalings give what transformers' `ROPE_INIT_FUNCTIONS` do.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np

from .config import check_positive, check_whole

FACTORS, LONG_FACTORS, SHORT_FACTORS = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
"""GGUF tensors that are divisors of frequencies: for any context, for long ones, and for those that are not."""
GGUF_TENSORS = (FACTORS, LONG_FACTORS, SHORT_FACTORS)


def plain_frequencies(theta: float, components: int) -> np.ndarray:
    """Of so many rotated components of a head: float64 of shape (components / 2,)."""
    return theta ** (-np.arange(0, components, 2, dtype=np.float64) / components)


@dataclass(frozen=True)
class RopeScaling(ABC):
    """What a model does to its frequencies. Raises ValueError for numbers that make no sense."""

    SETTINGS: ClassVar[frozenset[str]]
    """What config.json may say of it, beside what all rotary positions have."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "original_max_position_embeddings":
                check_whole(f"rope scaling's {name}", value)
            elif not isinstance(value, str | bool | tuple):
                check_positive(f"rope scaling's {name}", value)

    @abstractmethod
    def scaled(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """The frequencies that plain ones become."""

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0


@dataclass(frozen=True)
class Linear(RopeScaling):
    """All positions nearer to each other (Chen et al. 2023, "Positional Interpolation")."""

    SETTINGS: ClassVar[frozenset[str]] = frozenset({"factor"})
    factor: float
    rope_type: Literal["linear"] = "linear"

    def scaled(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3(RopeScaling):
    """Slow pairs slower, fast ones as they were (Dubey et al. 2024, "The Llama 3 Herd of Models"). In bundles it is the
    scaling without a `rope_type`, the first that there was."""

    SETTINGS: ClassVar[frozenset[str]] = frozenset({"factor", "low_freq_factor", "high_freq_factor"})
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(f"rope scaling's low_freq_factor {self.low_freq_factor} is not below its high_freq_factor "
                             f"{self.high_freq_factor}")

    def scaled(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        wavelength = 2 * math.pi / frequencies
        low = self.original_max_position_embeddings / self.low_freq_factor
        high = self.original_max_position_embeddings / self.high_freq_factor
        smooth = ((self.original_max_position_embeddings / wavelength - self.low_freq_factor)
                  / (self.high_freq_factor - self.low_freq_factor))
        between = (1 - smooth) * frequencies / self.factor + smooth * frequencies
        return np.where(wavelength > low, frequencies / self.factor,
                        np.where(wavelength < high, frequencies, between))


@dataclass(frozen=True)
class Yarn(RopeScaling):
    """As Llama 3's, with other borders, and attention that is a little sharper (Peng et al. 2023, "YaRN"). beta_fast,
    beta_slow: turns within the original context above which a pair is as it was, and below which it is slower by the
    whole factor. truncate: whether the borders are whole pairs."""

    SETTINGS: ClassVar[frozenset[str]] = frozenset({"factor", "beta_fast", "beta_slow", "truncate", "attention_factor",
                                                    "mscale", "mscale_all_dim"})
    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    rope_type: Literal["yarn"] = "yarn"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.truncate, bool):
            raise ValueError(f"rope scaling's truncate is {self.truncate!r}, expected true or false")

    @property
    def magnitude(self) -> float:
        return self.attention_factor

    def scaled(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        components, pairs = 2 * len(frequencies), np.arange(len(frequencies))

        def pair(turns: float) -> float:
            """Which pair turns so often within the original context."""
            return (components * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi))
                    / (2 * math.log(theta)))

        low, high = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, components - 1)
        slower = np.clip((pairs - low) / ((high - low) or 0.001), 0, 1)
        return frequencies * (1 - slower) + frequencies / self.factor * slower

    @staticmethod
    def usual_attention_factor(factor: float, mscale: float = 0.0, mscale_all_dim: float = 0.0) -> float:
        """`attention_factor` where none is given."""
        def of(scale: float) -> float:
            return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

        return of(mscale) / of(mscale_all_dim) if mscale and mscale_all_dim else of(1.0)


@dataclass(frozen=True)
class LongRope(RopeScaling):
    """A divisor for each pair (Ding et al. 2024, "LongRoPE"): one set of them for contexts of up to
    `original_max_position_embeddings` tokens, another for longer ones.

    Which set is used is settled by the context that a model is loaded for (`for_context`), and stays: keys that are in
    a cache were rotated with it. So an answer depends on the context that was asked for, as a policy's does on the size
    of its cache, and on no other thing. `long`: for a longer one.
    """

    SETTINGS: ClassVar[frozenset[str]] = frozenset({"factor", "short_factor", "long_factor", "attention_factor"})
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    attention_factor: float
    long: bool = False
    rope_type: Literal["longrope"] = "longrope"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.long, bool):
            raise ValueError(f"rope scaling's long is {self.long!r}, expected true or false")
        for name in ("short_factor", "long_factor"):
            check_factors(f"rope scaling's {name}", getattr(self, name), len(self.short_factor))

    @property
    def magnitude(self) -> float:
        return self.attention_factor

    def for_context(self, context: int) -> Self:
        """That of a conversation of at most so many tokens."""
        return replace(self, long=context > self.original_max_position_embeddings)

    def scaled(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        factors = self.long_factor if self.long else self.short_factor
        if len(factors) != len(frequencies):
            raise ValueError(f"rope scaling has {len(factors)} factors, expected {len(frequencies)}")
        return frequencies / np.array(factors, np.float64)

    @staticmethod
    def usual_attention_factor(factor: float, original: int) -> float:
        """`attention_factor` where none is given."""
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def check_factors(what: str, factors: Any, count: int) -> None:
    """Raises ValueError unless they are a tuple of `count` numbers above 0."""
    if not isinstance(factors, tuple):
        raise TypeError(f"{what} is {factors!r}, expected numbers")
    if len(factors) != count:
        raise ValueError(f"{what} has {len(factors)} numbers, expected {count}")
    for factor in factors:
        check_positive(f"a number of {what}", factor)


_KINDS: dict[str, type[RopeScaling]] = {"linear": Linear, "llama3": Llama3, "yarn": Yarn, "longrope": LongRope}
_ALL_HAVE = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings",
             "max_position_embeddings"}


def settings_of_hf(values: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of rotary positions: `rope_parameters` of transformers 5, with theta and the share of a
    head that is rotated, or `rope_scaling` of older ones, and what stands outside of both. Raises ValueError."""
    found = {name: value for name, value in (values.get("rope_scaling") or values.get("rope_parameters") or {}).items()
             if value is not None}
    if nested := [name for name, value in found.items() if isinstance(value, dict)]:
        raise ValueError(f"rotary positions that differ by layer ({', '.join(nested)}) are not known for this family")
    for name in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if values.get(name) is not None and (name not in found or name == "original_max_position_embeddings"):
            found[name] = values[name]
    found["rope_type"] = found.get("rope_type") or found.pop("type", None) or "default"
    return found


def scaling_of_hf(settings: Mapping[str, Any], most: int) -> RopeScaling | None:
    """The scaling that `settings_of_hf` describes; most: `max_position_embeddings`. Raises KeyError or ValueError."""
    kind = settings["rope_type"]
    if kind != "default" and kind not in _KINDS:
        raise ValueError(f"rope scaling of type {kind!r} is not known; known: default, {', '.join(_KINDS)}")
    known = _ALL_HAVE | (_KINDS[kind].SETTINGS if kind != "default" else {"factor"})
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"rope scaling of type {kind!r} has a setting {unknown[0]!r}, which is not known")
    original = int(settings.get("original_max_position_embeddings", most))
    given = settings.get("attention_factor")
    if kind == "linear":
        return Linear(float(settings["factor"]))
    if kind == "llama3":
        return Llama3(float(settings["factor"]), float(settings["low_freq_factor"]),
                      float(settings["high_freq_factor"]), original)
    if kind == "yarn":
        factor = float(settings.get("factor", most / original))
        return Yarn(factor, original, float(given) if given is not None else Yarn.usual_attention_factor(
            factor, float(settings.get("mscale", 0)), float(settings.get("mscale_all_dim", 0))),
            float(settings.get("beta_fast") or 32), float(settings.get("beta_slow") or 1),
            settings.get("truncate", True))
    if kind == "longrope":
        return LongRope(
            tuple(map(float, settings["short_factor"])), tuple(map(float, settings["long_factor"])), original,
            float(given) if given is not None else LongRope.usual_attention_factor(
                float(settings.get("factor", most / original)), original))
    return None


def scaling_of_gguf(metadata: Mapping[str, Any], architecture: str,
                    tensors: Mapping[str, tuple[float, ...]]) -> RopeScaling | None:
    """The scaling that GGUF metadata and the tensors LONG_FACTORS and SHORT_FACTORS describe; that of FACTORS is not
    one, but divisors beside it. Raises KeyError or ValueError."""
    def get(name: str, default: Any) -> Any:
        return metadata.get(f"{architecture}.rope.{name}", default)

    factor = float(get("scaling.factor", 0.0)) or float(get("scale_linear", 0.0)) or 1.0
    original = int(get("scaling.original_context_length", metadata[f"{architecture}.context_length"]))
    magnitude = float(get("scaling.attn_factor", 1.0))
    kind = get("scaling.type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise ValueError(f"rope scaling of type {kind!r} is not known; known: none, linear, yarn, longrope")
    if LONG_FACTORS in tensors and SHORT_FACTORS in tensors:
        factors = [tuple(value * factor for value in tensors[name]) for name in (SHORT_FACTORS, LONG_FACTORS)]
        return LongRope(factors[0], factors[1], original, magnitude)
    if kind == "longrope":
        raise ValueError(f"rope scaling of type longrope needs the tensors {SHORT_FACTORS} and {LONG_FACTORS}")
    if kind == "yarn":
        own = float(get("scaling.yarn_attn_factor", 0.0)) or Yarn.usual_attention_factor(
            factor, 1.0, float(get("scaling.yarn_log_multiplier", 0.0)))
        return Yarn(factor, original, own * magnitude, float(get("scaling.yarn_beta_fast", 32.0)),
                    float(get("scaling.yarn_beta_slow", 1.0)))
    if magnitude != 1.0:
        raise ValueError(f"rope scaling of type {kind} has an attn_factor of {magnitude}, which is not known")
    return Linear(factor) if kind == "linear" and factor != 1.0 else None


def scaling_of_json(values: Any) -> RopeScaling:
    """From what `asdict` made of it. Raises TypeError or ValueError."""
    kind = values.get("rope_type", "llama3") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"rope scaling of type {kind!r} is not known")
    return _KINDS[kind](**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
