"""What a model is wired from: the operations that a family's `wire` calls, and an engine provides."""

from collections.abc import Sequence
from typing import Any, Protocol

Activation = Any
"""A vector for each new token; what it is belongs to the engine."""


class Network(Protocol):
    """Operations on activations. Weights go by their canonical names; "NAME" stands for NAME.weight and NAME.bias."""

    def embedding(self, weight: str) -> Activation:
        """The new tokens' embeddings: the residual stream."""

    def norm(self, x: Activation, weight: str) -> Activation:
        """RMSNorm."""

    def linear(self, x: Activation, names: Sequence[str], *, bias: bool = False,
               add_to: Activation | None = None) -> Activation:
        """The products of x with one or more matrices, end to end; or their sum with `add_to`, in its place."""

    def attention(self, qkv: Activation, layer: int) -> Activation:
        """Rotary positions, the key-value cache of a layer, causal attention."""

    def feed_forward(self, x: Activation, layer: int, *, add_to: Activation) -> None:
        """SwiGLU: add_to += down(silu(gate x) * up x)."""

    def logits(self, x: Activation, norm: str, head: str) -> None:
        """The output head, for the tokens whose logits are wanted."""
