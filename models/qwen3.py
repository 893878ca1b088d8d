"""Qwen3: Llama's block without biases, and a norm of each head's query and key (Yang et al. 2025, "Qwen3")."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from . import block, rotary_config
from .network import Network
from .tensors import Role, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.SwitchedWindow, rotary_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "qwen3"
    READS: ClassVar[frozenset[str]] = rotary_config.SwitchedWindow.SWITCH

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return block.around(self, (spec for layer in range(self.num_hidden_layers) for spec in self._of_layer(layer)))

    def _of_layer(self, layer: int) -> Iterator[TensorSpec]:
        *before, output = block.attention(self, layer)
        yield from before
        for part, role in (("q", Role.QUERY_NORM), ("k", Role.KEY_NORM)):
            yield block.of_layer(layer, f"self_attn.{part}_norm.weight", (self.head_dim,), role,
                                 f"attn_{part}_norm.weight")
        yield output
        yield from block.feed_forward(self, layer)


def wire(config: Config, net: Network) -> None:
    """The whole model, top to bottom, as operations on a network."""
    x = net.embedding("model.embed_tokens.weight")
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        qkv = net.linear(net.norm(x, prefix + "input_layernorm.weight"), block.queries_keys_values(prefix))
        net.head_norms(qkv, prefix + "self_attn.q_norm.weight", prefix + "self_attn.k_norm.weight")
        net.linear(net.attention(qkv, layer), [prefix + "self_attn.o_proj"], add_to=x)
        net.feed_forward(net.norm(x, prefix + "post_attention_layernorm.weight"), layer, add_to=x)
    block.logits(config, net, x)
