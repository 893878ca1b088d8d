"""What families of mixtures of experts share: a dense family's block with a router and experts for its feed-forward
part.

The matrices of all experts of a layer are one tensor here, one expert below the other.
"""

from collections.abc import Iterator
from functools import partial

from . import block
from .expert_config import Config
from .network import Activation, Network
from .tensors import Role, TensorSpec


def tensors(config: Config) -> Iterator[TensorSpec]:
    """Every tensor, in the order of use."""
    return block.around(config, (spec for layer in range(config.num_hidden_layers)
                                 for part in (attention, experts) for spec in part(config, layer)))


def attention(config: Config, layer: int) -> Iterator[TensorSpec]:
    """A layer's attention and the norms before it and in it."""
    for spec in block.attention(config, layer):
        if spec.role is Role.ATTENTION_OUTPUT:
            yield from _in_attention(config, layer)
        yield spec
    if config.biases:
        yield block.of_layer(layer, "self_attn.o_proj.bias", (config.hidden_size,), Role.BIAS, "attn_output.bias")


def _in_attention(config: Config, layer: int) -> Iterator[TensorSpec]:
    """Norms of queries and keys, and sinks."""
    if config.query_key_norms is not None:
        whole = config.query_key_norms == "whole"
        for part, role, size in (("q", Role.QUERY_NORM, config.query_size), ("k", Role.KEY_NORM,
                                                                            config.key_value_size)):
            yield block.of_layer(layer, f"self_attn.{part}_norm.weight", (size if whole else config.head_dim,), role,
                                 f"attn_{part}_norm.weight")
    if config.sinks:
        yield block.of_layer(layer, "self_attn.sinks", (config.num_attention_heads,), Role.SINK, "attn_sinks.weight")


def experts(config: Config, layer: int) -> Iterator[TensorSpec]:
    """A layer's router and experts, and what all tokens have beside them, or in place of them; and the norm before."""
    hidden_size, count, neurons = config.hidden_size, config.num_experts, config.intermediate_size
    yield block.of_layer(layer, "post_attention_layernorm.weight", (hidden_size,), Role.NORM, config.gguf_experts_norm)
    if layer < config.dense_layers:
        yield from _glu(config, layer, "mlp.", config.dense_size, "")
        return
    yield block.of_layer(layer, "mlp.gate.weight", (count, hidden_size), Role.ROUTER, "ffn_gate_inp.weight")
    if config.biases:
        yield block.of_layer(layer, "mlp.gate.bias", (count,), Role.BIAS, "ffn_gate_inp.bias")
    if config.shared_size:
        *by_rows, down = _glu(config, layer, "mlp.shared_expert.", config.shared_size, "_shexp")
        yield from by_rows
        if config.shared_weighed:
            yield block.of_layer(layer, "mlp.shared_expert_gate.weight", (1, hidden_size), Role.SHARED_WEIGHT,
                                 "ffn_gate_inp_shexp.weight")
        yield down
    for part, role, rows, columns in (("gate", Role.GATE, neurons, hidden_size), ("up", Role.UP, neurons, hidden_size),
                                      ("down", Role.DOWN, hidden_size, neurons)):
        if config.biases:
            yield block.of_layer(layer, f"mlp.experts.{part}_proj.bias", (count * rows,), Role.BIAS,
                                 f"ffn_{part}_exps.bias")
        yield block.of_layer(layer, f"mlp.experts.{part}_proj.weight", (count * rows, columns), role,
                             f"ffn_{part}_exps.weight")


def _glu(config: Config, layer: int, name: str, neurons: int, gguf: str) -> Iterator[TensorSpec]:
    """A feed-forward part whose matrices stand for themselves."""
    for part, role, shape in (("gate", Role.SHARED_GATE, (neurons, config.hidden_size)),
                              ("up", Role.SHARED_UP, (neurons, config.hidden_size)),
                              ("down", Role.SHARED_DOWN, (config.hidden_size, neurons))):
        yield block.of_layer(layer, f"{name}{part}_proj.weight", shape, role, f"ffn_{part}{gguf}.weight")


def wire(config: Config, net: Network) -> None:
    """The whole model, top to bottom, as operations on a network."""
    x, scale = net.embedding("model.embed_tokens.weight", scale=config.embedding_scale), config.residual_scale
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        h = net.norm(x, prefix + "input_layernorm.weight")
        qkv = net.linear(h, block.queries_keys_values(prefix), bias=config.attention_bias)
        if config.query_key_norms is not None:
            net.head_norms(qkv, prefix + "self_attn.q_norm.weight", prefix + "self_attn.k_norm.weight",
                           whole=config.query_key_norms == "whole")
        h = net.attention(qkv, layer, sinks=prefix + "self_attn.sinks" if config.sinks else None)
        _add(net, h, prefix + "self_attn.o_proj", x, scale, bias=config.biases)
        h = net.norm(x, prefix + "post_attention_layernorm.weight")
        if layer < config.dense_layers:
            _gated(config, net, h, prefix + "mlp.", x, config.dense_size)
        else:
            net.experts(h, layer, add_to=x, scale=scale, meanwhile=partial(_shared, config, net, h, prefix + "mlp.", x))
    block.logits(config, net, x)


def _shared(config: Config, net: Network, h: Activation, prefix: str, x: Activation) -> None:
    if config.shared_size:
        weight = prefix + "shared_expert_gate" if config.shared_weighed else None
        _gated(config, net, h, prefix + "shared_expert.", x, config.shared_size, weight)


def _gated(config: Config, net: Network, h: Activation, prefix: str, x: Activation, neurons: int,
           weight: str | None = None) -> None:
    """x += a feed-forward part whose matrices stand for themselves. weight: of one row, how much of it."""
    names = [prefix + "gate_proj", prefix + "up_proj", *([weight] if weight else [])]
    h = net.glu(net.linear(h, names), neurons, weighed=weight is not None)
    _add(net, h, prefix + "down_proj", x, config.residual_scale)


def _add(net: Network, h: Activation, name: str, x: Activation, scale: float, *, bias: bool = False) -> None:
    """x += scale * (a matrix times h)."""
    if scale == 1:
        net.linear(h, [name], bias=bias, add_to=x)
    else:
        net.add(net.linear(h, [name], bias=bias), to=x, scale=scale)
