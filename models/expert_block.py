"""What families of mixtures of experts share: a dense family's block with a router and experts for its feed-forward
part.

The matrices of all experts of a layer are one tensor here, one expert below the other.
"""

from collections.abc import Iterator

from . import block
from .expert_config import Config
from .network import Network
from .tensors import Role, TensorSpec


def tensors(config: Config) -> Iterator[TensorSpec]:
    """Every tensor, in the order of use."""
    return block.around(config, (spec for layer in range(config.num_hidden_layers)
                                 for part in (attention, experts) for spec in part(config, layer)))


def attention(config: Config, layer: int) -> Iterator[TensorSpec]:
    """A layer's attention and the norms before it and in it."""
    for spec in block.attention(config, layer):
        if spec.role is Role.ATTENTION_OUTPUT and config.query_key_norms is not None:
            whole = config.query_key_norms == "whole"
            for part, role, size in (("q", Role.QUERY_NORM, config.query_size),
                                     ("k", Role.KEY_NORM, config.key_value_size)):
                yield block.of_layer(layer, f"self_attn.{part}_norm.weight", (size if whole else config.head_dim,),
                                     role, f"attn_{part}_norm.weight")
        yield spec


def experts(config: Config, layer: int) -> Iterator[TensorSpec]:
    """A layer's router and experts, and the norm before them."""
    hidden_size, neurons = config.hidden_size, config.num_experts * config.intermediate_size
    yield block.of_layer(layer, "post_attention_layernorm.weight", (hidden_size,), Role.NORM, "ffn_norm.weight")
    yield block.of_layer(layer, "mlp.gate.weight", (config.num_experts, hidden_size), Role.ROUTER,
                         "ffn_gate_inp.weight")
    for part, role in (("gate", Role.GATE), ("up", Role.UP)):
        yield block.of_layer(layer, f"mlp.experts.{part}_proj.weight", (neurons, hidden_size), role,
                             f"ffn_{part}_exps.weight")
    yield block.of_layer(layer, "mlp.experts.down_proj.weight",
                         (config.num_experts * hidden_size, config.intermediate_size), Role.DOWN,
                         "ffn_down_exps.weight")


def wire(config: Config, net: Network) -> None:
    """The whole model, top to bottom, as operations on a network."""
    x = net.embedding("model.embed_tokens.weight")
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        h = net.norm(x, prefix + "input_layernorm.weight")
        qkv = net.linear(h, block.queries_keys_values(prefix), bias=config.attention_bias)
        if config.query_key_norms is not None:
            net.head_norms(qkv, prefix + "self_attn.q_norm.weight", prefix + "self_attn.k_norm.weight",
                           whole=config.query_key_norms == "whole")
        h = net.attention(qkv, layer)
        net.linear(h, [prefix + "self_attn.o_proj"], add_to=x)
        h = net.norm(x, prefix + "post_attention_layernorm.weight")
        net.experts(h, layer, add_to=x)
    block.logits(config, net, x)
