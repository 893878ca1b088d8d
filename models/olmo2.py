"""OLMo 2: a norm behind attention and behind the feed-forward part instead of before them, and one of all queries of a
token, and of all its keys (OLMo Team 2024, "2 OLMo 2 Furious")."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from . import block, rotary_config
from .network import Network
from .tensors import Role, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "olmo2"

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return block.around(self, (spec for layer in range(self.num_hidden_layers) for spec in self._of_layer(layer)))

    def _of_layer(self, layer: int) -> Iterator[TensorSpec]:
        yield from block.projections(self, layer)
        for part, role, size in (("q", Role.QUERY_NORM, self.query_size), ("k", Role.KEY_NORM, self.key_value_size)):
            yield block.of_layer(layer, f"self_attn.{part}_norm.weight", (size,), role, f"attn_{part}_norm.weight")
        yield block.attention_output(self, layer)
        yield block.of_layer(layer, "post_attention_layernorm.weight", (self.hidden_size,), Role.NORM,
                             "post_attention_norm.weight")
        yield from block.gated(self, layer)
        yield block.of_layer(layer, "post_feedforward_layernorm.weight", (self.hidden_size,), Role.NORM,
                             "post_ffw_norm.weight")


def wire(config: Config, net: Network) -> None:
    """The whole model, top to bottom, as operations on a network."""
    x = net.embedding("model.embed_tokens.weight")
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        qkv = net.linear(net.plain(x), block.queries_keys_values(prefix))
        net.head_norms(qkv, prefix + "self_attn.q_norm.weight", prefix + "self_attn.k_norm.weight", whole=True)
        y = net.linear(net.attention(qkv, layer), [prefix + "self_attn.o_proj"])
        net.add(y, to=x, norm=prefix + "post_attention_layernorm.weight")
        net.add(net.feed_forward(net.plain(x), layer), to=x, norm=prefix + "post_feedforward_layernorm.weight")
    block.logits(config, net, x)
