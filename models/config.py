"""The hyper-parameters of a dense decoder, as config.json, GGUF metadata and bundles have them, and what is possible.

A family's own `Config`, in its own file, says what else is true of it, and which tensors it has.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np

from edgert.kernels.records import HIDDEN_ACTS

from .tensors import FEED_FORWARD, Fused, Joined, Role, TensorSpec

MAX_FREQUENCY = 1e9
"""Of rotary positions, in radians per position. The highest of every real model is 1."""


def check_whole(name: str, value: Any) -> None:
    """Raises ValueError where the value is no size."""
    if type(value) is not int or not 1 <= value <= 1 << 24:
        raise ValueError(f"{name} is {value!r}, expected a whole number from 1 to {1 << 24}")


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError where the value is no float above 0."""
    if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} is {value!r}, expected a number above 0")


@dataclass(frozen=True, kw_only=True)
class Config(ABC):
    """Hyper-parameters, named as in Hugging Face's config.json. Raises ValueError for such as no model has."""

    architecture: ClassVar[str]
    """The family's name in GGUF files (`general.architecture`) and in bundles, and mostly in config.json
    (`model_type`)."""
    gated: ClassVar[bool] = True
    """Whether the feed-forward part is down(act(gate x) * up x), or down(act(up x))."""
    attention_bias: ClassVar[bool] = False
    """Whether the q, k and v projections have biases."""
    LATER: ClassVar[frozenset[str]] = frozenset({"hidden_act"})
    """Fields that bundles leave out where they are as usual: those from before there were such fields have none."""
    sinks: ClassVar[bool] = False
    """Whether attention has sinks (Network.attention)."""
    hf_norm_offset: ClassVar[float] = 0.0
    """What the weights of norms lack in safetensors files: where norms multiply by 1 + w, these have w."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    hidden_act: str = "silu"
    """`act` above: one of kernels.records.HIDDEN_ACTS."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"):
            check_whole(name, getattr(self, name))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"{self.num_attention_heads} attention heads are not a multiple of "
                             f"{self.num_key_value_heads} key-value heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, expected an even number")
        if self.rotary_dim % 2 or not 2 <= self.rotary_dim <= self.head_dim:
            raise ValueError(f"{self.rotary_dim} of {self.head_dim} components of a head are rotated, expected an even "
                             "number of them")
        if not isinstance(self.tie_word_embeddings, bool):
            raise ValueError(f"tie_word_embeddings is {self.tie_word_embeddings!r}, expected true or false")
        if self.hidden_act not in HIDDEN_ACTS:
            raise ValueError(f"activation {self.hidden_act!r} is not known; known: {', '.join(HIDDEN_ACTS)}")

    @property
    def sparse(self) -> bool:
        """Whether the activation makes true zeros: then most neurons of most tokens are none that count, and the first
        matrix of a layer's feed-forward part, gate or up, says which ("LLM in a flash", Alizadeh et al. 2023)."""
        return self.hidden_act in ("relu", "relu2")

    @property
    def experts(self) -> int:
        """How many feed-forward parts a layer has of which a router chooses some for each token; 0 where it has one for
        all."""
        return 0

    @property
    def experts_per_token(self) -> int:
        """How many of them a token has."""
        return 0

    @property
    def dense_layers(self) -> int:
        """How many layers, the first ones, have feed-forward parts whose matrices stand for themselves, so that there
        are no neurons of theirs in a bundle: those without experts in a model whose others have some."""
        return 0

    @property
    def glu_columns(self) -> int:
        """Of the widest gated linear unit whose matrices stand for themselves (Network.glu); 0 where there is none."""
        return 0

    @property
    def selective(self) -> bool:
        """Whether a token needs only some of a layer's neurons, and which ones is known only in that layer."""
        return self.sparse or self.experts > 0

    @property
    def in_groups(self) -> frozenset[Role]:
        """Of which roles matrices are in neuron groups: of all of the feed-forward part, but for the one that decides
        which neurons are zero."""
        deciding = {Role.GATE if self.gated else Role.UP} if self.sparse else set()
        return FEED_FORWARD - deciding

    @abstractmethod
    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor that a model of these hyper-parameters has, in the order of use."""

    def fused(self) -> Iterator[Fused]:
        """Those of them that files have, or may have, as one."""
        return iter(())

    def joined(self) -> Iterator[Joined]:
        """Those of them that files have in parts."""
        return iter(())

    @property
    @abstractmethod
    def norm_epsilon(self) -> float:
        """What every norm adds to the mean of squares."""

    @property
    @abstractmethod
    def rotates_neighbours(self) -> bool:
        """Which two components of a head rotate together: 2i and 2i + 1, or i and i + rotary_dim/2."""

    @property
    def rotary_dim(self) -> int:
        """How many components of a head are rotated, the first ones."""
        return self.head_dim

    @abstractmethod
    def rope_frequencies(self) -> np.ndarray:
        """Rotary angles per position, float64 of shape (rotary_dim / 2,)."""

    def rope_tables(self) -> list[np.ndarray]:
        """Those of all layers, each as of `rope_frequencies`, where layers do not have the same ones."""
        return [self.rope_frequencies()]

    def rope_table(self, layer: int) -> int | None:
        """Which of `rope_tables` a layer has; None for one whose queries and keys are not rotated."""
        return 0

    @property
    def rope_attention_factor(self) -> float:
        """What cosines and sines are multiplied by ("YaRN", Peng et al. 2023)."""
        return 1.0

    def query_scales(self, positions: np.ndarray) -> np.ndarray | None:
        """What queries are multiplied by at these positions, float64 of their shape; None in a model where that is 1
        everywhere. Of others whole heads are rotated, in all layers."""
        return None

    @property
    def angle_tables(self) -> int:
        """How many tables of cosines and sines a token has: `rope_tables`, and where queries are scaled as many for
        them alone."""
        return len(self.rope_tables()) * (1 if self.query_scales(np.zeros(0)) is None else 2)

    @property
    def attention_scale(self) -> float:
        """What products of queries and keys are multiplied by."""
        return self.head_dim ** -0.5

    @property
    def attention_softcap(self) -> float | None:
        """What tanh keeps the size of these products below: cap * tanh(product / cap)."""
        return None

    def window(self, layer: int) -> int | None:
        """How many positions, the latest ones, itself among them, a token sees in a layer; None for all."""
        return None

    @property
    def logit_scale(self) -> float:
        """What logits are multiplied by."""
        return 1.0

    def for_context(self, context: int) -> Self:
        """The config of a model that is loaded for so many tokens: another one, which may know fewer positions, where
        its rotary frequencies depend on that (`rope.LongRope`)."""
        return self

    @property
    def logit_softcap(self) -> float | None:
        """The same of logits, after that."""
        return None

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @classmethod
    @abstractmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """From the JSON object in Hugging Face's config.json. Raises KeyError or ValueError."""

    @classmethod
    @abstractmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, vocab_size: int, tie_word_embeddings: bool,
                  tensors: Set[str] = frozenset(),
                  rope_tensors: Mapping[str, tuple[float, ...]] = MappingProxyType({})) -> Self:
        """From GGUF metadata (`llama.block_count` and so on), the names of all tensors, and those of
        `rope.GGUF_TENSORS` that are there. Raises KeyError or ValueError."""

    @classmethod
    def usual(cls) -> dict[str, Any]:
        """The fields of `LATER` with their defaults."""
        return {field.name: field.default for field in fields(cls) if field.name in cls.LATER}

    def to_json(self) -> dict[str, Any]:
        """As bundles have it: without what is as in `usual`."""
        usual = self.usual()
        return {name: value for name, value in asdict(self).items() if name not in usual or value != usual[name]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From what `to_json` gave. Raises TypeError or ValueError."""
        return cls(**values)


_ACTS = {"relu_squared": "relu2", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def hidden_act(name: Any) -> Any:
    """An activation in a config.json, by the name that it has here."""
    return _ACTS.get(name, name) if isinstance(name, str) else name
