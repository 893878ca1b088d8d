"""What the tensors of a model are: a family lists them, and whoever needs to know asks for the role and the layer."""

from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple


class Role(Enum):
    """What a tensor does."""

    EMBEDDING = auto()
    NORM = auto()
    QUERY = auto()
    KEY = auto()
    VALUE = auto()
    QUERY_NORM = auto()
    """Of each head's query, before it is rotated; KEY_NORM likewise."""
    KEY_NORM = auto()
    ATTENTION_OUTPUT = auto()
    BIAS = auto()
    GATE = auto()
    UP = auto()
    DOWN = auto()
    HEAD = auto()
    """The output head, where it is not the embedding."""


FEED_FORWARD = frozenset({Role.GATE, Role.UP, Role.DOWN})
"""Matrices whose rows (of DOWN: columns) are a layer's neurons."""


class TensorSpec(NamedTuple):
    """One tensor of a model."""

    name: str
    """Hugging Face's name, which bundles have too: the canonical one."""
    shape: tuple[int, ...]
    """(rows, columns) of a matrix, (n,) of a vector."""
    role: Role
    layer: int | None
    """None outside the layers."""
    gguf: str
    """Its name in GGUF files."""

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2


class FeedForward(NamedTuple):
    """The matrices of a layer's feed-forward part."""

    gate: TensorSpec
    up: TensorSpec
    down: TensorSpec


def feed_forward_parts(tensors: Iterable[TensorSpec]) -> list[FeedForward]:
    """The feed-forward part of every layer, in the order of layers."""
    layers: dict[int, dict[Role, TensorSpec]] = {}
    for spec in tensors:
        if spec.role in FEED_FORWARD:
            assert spec.layer is not None
            layers.setdefault(spec.layer, {})[spec.role] = spec
    return [FeedForward(*(layers[layer][role] for role in (Role.GATE, Role.UP, Role.DOWN))) for layer in sorted(layers)]
