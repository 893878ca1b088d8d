"""What the dense families share: a decoder of pre-normalised blocks, its tensors and its wiring.

RMSNorm, grouped-query attention with rotary positions, RMSNorm, and a gated feed-forward part. A family that is built
otherwise has its own list and its own `wire` in its own file, the list made of the parts of this one where they fit.
"""

from collections.abc import Iterable, Iterator

from .config import Config
from .network import Activation, Network
from .tensors import Role, TensorSpec


def tensors(config: Config) -> Iterator[TensorSpec]:
    """Every tensor, in the order of use."""
    return around(config, (spec for layer in range(config.num_hidden_layers)
                           for part in (attention, feed_forward) for spec in part(config, layer)))


def around(config: Config, layers: Iterable[TensorSpec]) -> Iterator[TensorSpec]:
    """The embedding, the tensors of all layers, and what follows them."""
    table = (config.vocab_size, config.hidden_size)
    yield TensorSpec("model.embed_tokens.weight", table, Role.EMBEDDING, None, "token_embd.weight")
    yield from layers
    yield TensorSpec("model.norm.weight", (config.hidden_size,), Role.NORM, None, "output_norm.weight")
    if not config.tie_word_embeddings:
        yield TensorSpec("lm_head.weight", table, Role.HEAD, None, "output.weight")


def attention(config: Config, layer: int) -> Iterator[TensorSpec]:
    """A layer's attention and the norm before it."""
    yield of_layer(layer, "input_layernorm.weight", (config.hidden_size,), Role.NORM, "attn_norm.weight")
    yield from projections(config, layer, bias=config.attention_bias)
    yield attention_output(config, layer)


def projections(config: Config, layer: int, *, bias: bool = False) -> Iterator[TensorSpec]:
    """What makes queries, keys and values."""
    for part, role, rows in (("q", Role.QUERY, config.query_size), ("k", Role.KEY, config.key_value_size),
                             ("v", Role.VALUE, config.key_value_size)):
        yield of_layer(layer, f"self_attn.{part}_proj.weight", (rows, config.hidden_size), role, f"attn_{part}.weight")
        if bias:
            yield of_layer(layer, f"self_attn.{part}_proj.bias", (rows,), Role.BIAS, f"attn_{part}.bias")


def attention_output(config: Config, layer: int) -> TensorSpec:
    """The matrix behind attention."""
    return of_layer(layer, "self_attn.o_proj.weight", (config.hidden_size, config.query_size), Role.ATTENTION_OUTPUT,
                    "attn_output.weight")


def feed_forward(config: Config, layer: int) -> Iterator[TensorSpec]:
    """A layer's feed-forward part and the norm before it."""
    yield of_layer(layer, "post_attention_layernorm.weight", (config.hidden_size,), Role.NORM, "ffn_norm.weight")
    yield from gated(config, layer)


def gated(config: Config, layer: int) -> Iterator[TensorSpec]:
    """The three matrices of a feed-forward part."""
    hidden_size, neurons = config.hidden_size, config.intermediate_size
    yield of_layer(layer, "mlp.gate_proj.weight", (neurons, hidden_size), Role.GATE, "ffn_gate.weight")
    yield of_layer(layer, "mlp.up_proj.weight", (neurons, hidden_size), Role.UP, "ffn_up.weight")
    yield of_layer(layer, "mlp.down_proj.weight", (hidden_size, neurons), Role.DOWN, "ffn_down.weight")


def pair(layer: int, name: str, shape: tuple[int, ...], role: Role, gguf: str,
         bias: Role = Role.BIAS) -> Iterator[TensorSpec]:
    """A weight of a layer and its bias."""
    yield of_layer(layer, name + ".weight", shape, role, gguf + ".weight")
    yield of_layer(layer, name + ".bias", shape[:1], bias, gguf + ".bias")


def of_layer(layer: int, name: str, shape: tuple[int, ...], role: Role, gguf: str) -> TensorSpec:
    """A tensor of a layer, whose names are those within it."""
    return TensorSpec(f"model.layers.{layer}.{name}", shape, role, layer, f"blk.{layer}.{gguf}")


def queries_keys_values(prefix: str) -> list[str]:
    """The names of what makes them."""
    return [f"{prefix}self_attn.{part}_proj" for part in "qkv"]


def wire(config: Config, net: Network) -> None:
    """The whole model, top to bottom, as operations on a network."""
    x = net.embedding("model.embed_tokens.weight")
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        h = net.norm(x, prefix + "input_layernorm.weight")
        qkv = net.linear(h, queries_keys_values(prefix), bias=config.attention_bias)
        h = net.attention(qkv, layer)
        net.linear(h, [prefix + "self_attn.o_proj"], add_to=x)
        h = net.norm(x, prefix + "post_attention_layernorm.weight")
        net.feed_forward(h, layer, add_to=x)
    logits(config, net, x)


def logits(config: Config, net: Network, x: Activation) -> None:
    """The last norm and the output head."""
    net.logits(x, "model.norm.weight", "model.embed_tokens" if config.tie_word_embeddings else "lm_head")
