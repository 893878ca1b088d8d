"""What a model is wired from: the operations that a family's `wire` calls, and an engine provides."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

Activation = Any
"""A vector for each new token; what it is belongs to the engine."""


class Network(Protocol):
    """Operations on activations. Weights go by their canonical names; "NAME" stands for NAME.weight and NAME.bias.

    There are three vectors for each token, and an activation lasts until the next operation that gives one of its kind:
    the residual stream; what `norm`, `plain` and `attention` give; and what `linear` and `feed_forward` give where they
    do not add. So where attention and feed-forward part both start from the same x ("parallel residual": GPT-J, Wang
    and Komatsuzaki 2021), `wire` calls `norm` twice, also if both use one, and adds what attention gave at the end:

        qkv = net.linear(net.norm(x, ...), [...])
        y = net.linear(net.attention(qkv, layer), [...])
        net.feed_forward(net.norm(x, ...), layer, add_to=x)
        net.add(y, to=x)
    """

    def embedding(self, weight: str, *, scale: float = 1.0) -> Activation:
        """The new tokens' embeddings, times a number: the residual stream."""

    def add_positions(self, x: Activation, weight: str, *, first: int) -> None:
        """Add to the embeddings those of their positions; row `first` of the matrix is that of position 0."""

    def norm(self, x: Activation, weight: str, *, bias: str | None = None, centered: bool = False) -> Activation:
        """RMSNorm; centered, or with a bias: LayerNorm, for which the mean is taken from x first. Of the residual
        stream, or of what `attention` or `glu` gave, which it then takes the place of."""

    def plain(self, x: Activation) -> Activation:
        """The residual stream as it is, where a family has no norm before a matrix."""

    def linear(self, x: Activation, names: Sequence[str], *, bias: bool = False,
               add_to: Activation | None = None) -> Activation:
        """The products of x with one or more matrices, end to end; or their sum with `add_to`, in its place."""

    def head_norms(self, qkv: Activation, query_weight: str, key_weight: str, *, whole: bool = False) -> None:
        """RMSNorm of each head's query and key, in place, before they are rotated; whole: of all queries of a token as
        one vector, and of all its keys."""

    def head_layer_norms(self, qkv: Activation, query_weight: str, key_weight: str) -> None:
        """LayerNorm of each head's query and key, in place, before they are rotated; every head has weights of its own,
        one head's after another's. `head_dim` is a multiple of `formats.BLOCK`."""

    def attention(self, qkv: Activation, layer: int, *, sinks: str | None = None) -> Activation:
        """Rotary positions, the key-value cache of a layer, causal attention. sinks: the weight with a score for each
        head that counts in the softmax and has no value."""

    def feed_forward(self, x: Activation, layer: int, *, add_to: Activation | None = None) -> Activation:
        """down(act(gate x) * up x), or, in a family that has no gate, down(act(up x)), with the layer's biases if there
        are some; or its sum with `add_to`, in its place. `act` is the config's `hidden_act`."""

    def experts(self, x: Activation, layer: int, *, add_to: Activation, scale: float = 1.0,
                meanwhile: Callable[[], None] = lambda: None) -> None:
        """add_to += scale * what the experts that a layer's router chooses for x make of it, each a gated feed-forward
        part, weighed as the config says. meanwhile: calls other operations, for the time in which experts are read."""

    def glu(self, gate_up: Activation, columns: int, *, weighed: bool = False) -> Activation:
        """act(gate) * up, of so many columns each, of what `linear` gave for both; times the sigmoid of what it gave
        for a third matrix, of one row. It lasts until the next one."""

    def add(self, y: Activation, *, to: Activation, norm: str | None = None, scale: float = 1.0) -> None:
        """to += scale * y; with a norm's weight: to += scale * RMSNorm(y)."""

    def logits(self, x: Activation, norm: str, head: str, *, norm_bias: str | None = None, centered: bool = False,
               head_bias: str | None = None) -> None:
        """The output head, for the tokens whose logits are wanted, after a norm as in `norm`."""
