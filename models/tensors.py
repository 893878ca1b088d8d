"""What the tensors of a model are: a family lists them, and whoever needs to know asks for the role and the layer."""

from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple


class Role(Enum):
    """What a tensor does."""

    EMBEDDING = auto()
    POSITION = auto()
    """Embeddings of positions, where they are learned."""
    NORM = auto()
    QUERY = auto()
    KEY = auto()
    VALUE = auto()
    QUERY_NORM = auto()
    """Of each head's query, before it is rotated; KEY_NORM likewise."""
    KEY_NORM = auto()
    ATTENTION_OUTPUT = auto()
    BIAS = auto()
    """Of attention, of a LayerNorm, of a router or of experts: one expert's after another's."""
    SINK = auto()
    """Scores of attention that have no value, one for each head (Network.attention)."""
    ROUTER = auto()
    """Which experts a token has."""
    SHARED_GATE = auto()
    """Of a feed-forward part that all tokens have beside experts, or in place of them; and so the next two."""
    SHARED_UP = auto()
    SHARED_DOWN = auto()
    SHARED_WEIGHT = auto()
    """One row: how much of that part a token takes."""
    GATE = auto()
    """Of all experts of a layer, where it has some; and so UP and DOWN."""
    UP = auto()
    """The rows that gate values stand beside; where there is no gate, a layer's first matrix."""
    UP_BIAS = auto()
    DOWN = auto()
    DOWN_BIAS = auto()
    HEAD = auto()
    """The output head, where it is not the embedding."""


NORMS = frozenset({Role.NORM, Role.QUERY_NORM, Role.KEY_NORM})
"""Weights of norms."""
ALWAYS_RESIDENT = frozenset({Role.POSITION, Role.ROUTER, Role.SHARED_WEIGHT})
"""Matrices of a few rows for each layer's thousands, or of which a token needs a row: they stay in memory, in floats.
"""
FEED_FORWARD = frozenset({Role.GATE, Role.UP, Role.DOWN})
"""Matrices whose rows (of DOWN: columns) are a layer's neurons."""


class TensorSpec(NamedTuple):
    """One tensor of a model."""

    name: str
    """Hugging Face's name, which bundles have too: the canonical one."""
    shape: tuple[int, ...]
    """(rows, columns) of a matrix, (n,) of a vector. Of experts' matrices: one expert's rows after another's."""
    role: Role
    layer: int | None
    """None outside the layers."""
    gguf: str
    """Its name in GGUF files; empty where these have no such family."""

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2


class Fused(NamedTuple):
    """One tensor of a file that is several of a model, their rows end to end.

    name, gguf: as in TensorSpec. by_head: of how many heads the rows are, in Hugging Face's files: there all parts of
    the first head come first, then those of the second; 1 where each part is whole.
    """

    name: str
    parts: tuple[TensorSpec, ...]
    gguf: str
    by_head: int = 1


class Joined(NamedTuple):
    """A vector of a model that files have in parts of one size: Hugging Face's as a tensor each, with the names
    `parts`, GGUF files as the rows of a matrix."""

    whole: TensorSpec
    parts: tuple[str, ...]


class FeedForward(NamedTuple):
    """The tensors of a layer's feed-forward part. Where there is a gate, there are no biases.

    sparse: whether the first matrix's products say which neurons are zero, so that it stands for itself.
    """

    gate: TensorSpec | None
    up: TensorSpec
    down: TensorSpec
    up_bias: TensorSpec | None
    down_bias: TensorSpec | None
    sparse: bool = False

    @property
    def by_rows(self) -> list[TensorSpec]:
        """The matrices whose rows are neurons, in the order of use."""
        return [self.up] if self.gate is None else [self.gate, self.up]

    @property
    def in_groups(self) -> list[TensorSpec]:
        """Those of them that neuron groups have, in that order."""
        return self.by_rows[self.sparse:]

    @property
    def deciding(self) -> TensorSpec | None:
        """The matrix whose products decide which neurons are zero, where there are zeros."""
        return self.by_rows[0] if self.sparse else None

    @property
    def matrices(self) -> list[TensorSpec]:
        return [*self.by_rows, self.down]


def feed_forward_parts(tensors: Iterable[TensorSpec], *, sparse: bool = False) -> list[FeedForward]:
    """The feed-forward part of every layer, in the order of layers. sparse: as Config.sparse."""
    layers: dict[int, dict[Role, TensorSpec]] = {}
    for spec in tensors:
        if spec.role in FEED_FORWARD or spec.role in (Role.UP_BIAS, Role.DOWN_BIAS):
            assert spec.layer is not None
            layers.setdefault(spec.layer, {})[spec.role] = spec
    return [FeedForward(of.get(Role.GATE), of[Role.UP], of[Role.DOWN], of.get(Role.UP_BIAS), of.get(Role.DOWN_BIAS),
                        sparse)
            for _, of in sorted(layers.items())]
