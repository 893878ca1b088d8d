"""What a model is wired from: the operations that a family's `wire` calls, and an engine provides."""

from collections.abc import Sequence
from typing import Any, Protocol

Activation = Any
"""A vector for each new token; what it is belongs to the engine."""


class Network(Protocol):
    """Operations on activations. Weights go by their canonical names; "NAME" stands for NAME.weight and NAME.bias."""

    def embedding(self, weight: str) -> Activation:
        """The new tokens' embeddings: the residual stream."""

    def add_positions(self, x: Activation, weight: str, *, first: int) -> None:
        """Add to the embeddings those of their positions; row `first` of the matrix is that of position 0."""

    def norm(self, x: Activation, weight: str, *, bias: str | None = None) -> Activation:
        """RMSNorm; with a bias LayerNorm, for which the mean is taken from x first."""

    def linear(self, x: Activation, names: Sequence[str], *, bias: bool = False,
               add_to: Activation | None = None) -> Activation:
        """The products of x with one or more matrices, end to end; or their sum with `add_to`, in its place."""

    def attention(self, qkv: Activation, layer: int) -> Activation:
        """Rotary positions, the key-value cache of a layer, causal attention."""

    def feed_forward(self, x: Activation, layer: int, *, add_to: Activation) -> None:
        """add_to += down(act(gate x) * up x), or, in a family that has no gate, down(act(up x)), with the layer's
        biases if there are some. `act` is the config's `hidden_act`."""

    def experts(self, x: Activation, layer: int, *, add_to: Activation) -> None:
        """add_to += what the experts that a layer's router chooses for x make of it, each a gated feed-forward part
        without biases, weighed as the config says."""

    def logits(self, x: Activation, norm: str, head: str, *, norm_bias: str | None = None) -> None:
        """The output head, for the tokens whose logits are wanted, after a norm as in `norm`."""
