"""BitNet b1.58: Llama's block with ternary weights, and a norm before the last matrix of attention and of the
feed-forward part (Ma et al. 2024, "The Era of 1-bit LLMs"; Ma et al. 2025, "BitNet b1.58 2B4T Technical Report")."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from . import block, rotary_config
from .network import Network
from .tensors import Role, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Config(rotary_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "bitnet"
    usual_theta: ClassVar[float] = 500000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.query_size != self.hidden_size:
            raise ValueError(f"{self.num_attention_heads} heads of {self.head_dim} components are not the "
                             f"{self.hidden_size} that the norm behind attention has weights for")

    @property
    def sparse(self) -> bool:
        """False, although the activation of the 2B model makes zeros (relu2): the norm behind it needs all neurons."""
        return False

    @property
    def dense_layers(self) -> int:
        """All: between a layer's neurons and its down projection stands a norm, so they cannot go one by one."""
        return self.num_hidden_layers

    @property
    def glu_columns(self) -> int:
        return self.intermediate_size

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        return block.around(self, (spec for layer in range(self.num_hidden_layers) for spec in self._of_layer(layer)))

    def _of_layer(self, layer: int) -> Iterator[TensorSpec]:
        hidden_size, neurons = self.hidden_size, self.intermediate_size
        *before, output = block.attention(self, layer)
        yield from before
        yield block.of_layer(layer, "self_attn.attn_sub_norm.weight", (hidden_size,), Role.NORM, "attn_sub_norm.weight")
        yield output
        yield block.of_layer(layer, "post_attention_layernorm.weight", (hidden_size,), Role.NORM, "ffn_norm.weight")
        for part, role in (("gate", Role.SHARED_GATE), ("up", Role.SHARED_UP)):
            yield block.of_layer(layer, f"mlp.{part}_proj.weight", (neurons, hidden_size), role, f"ffn_{part}.weight")
        yield block.of_layer(layer, "mlp.ffn_sub_norm.weight", (neurons,), Role.NORM, "ffn_sub_norm.weight")
        yield block.of_layer(layer, "mlp.down_proj.weight", (hidden_size, neurons), Role.SHARED_DOWN, "ffn_down.weight")


def wire(config: Config, net: Network) -> None:
    """The whole model, top to bottom, as operations on a network."""
    x = net.embedding("model.embed_tokens.weight")
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        qkv = net.linear(net.norm(x, prefix + "input_layernorm.weight"), block.queries_keys_values(prefix))
        h = net.norm(net.attention(qkv, layer), prefix + "self_attn.attn_sub_norm.weight")
        net.linear(h, [prefix + "self_attn.o_proj"], add_to=x)
        h = net.norm(x, prefix + "post_attention_layernorm.weight")
        gate_up = net.linear(h, [prefix + "mlp.gate_proj", prefix + "mlp.up_proj"])
        h = net.norm(net.glu(gate_up, config.intermediate_size), prefix + "mlp.ffn_sub_norm.weight")
        net.linear(h, [prefix + "mlp.down_proj"], add_to=x)
    block.logits(config, net, x)
