"""Phi-1, Phi-1.5 and Phi-2: LayerNorm, a part of each head rotated, attention and feed-forward part side by side behind
one norm, biases everywhere, no gate (Li et al. 2023, "Textbooks Are All You Need II"; config.json calls them `phi`)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from . import block, layer_norm_config
from .network import Network
from .tensors import Fused, Role, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Config(layer_norm_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "phi2"
    gated: ClassVar[bool] = False
    usual_share: ClassVar[float] = 0.5
    gguf_act: ClassVar[str] = "gelu_tanh"

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return super().hf_fields({"hidden_act": "gelu_new", **values})

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        wide, neurons, table = self.hidden_size, self.intermediate_size, (self.vocab_size, self.hidden_size)
        yield TensorSpec("model.embed_tokens.weight", table, Role.EMBEDDING, None, "token_embd.weight")
        for layer in range(self.num_hidden_layers):
            yield from block.pair(layer, "input_layernorm", (wide,), Role.NORM, "attn_norm")
            yield from block.projections(self, layer, bias=True)
            yield from block.pair(layer, "self_attn.dense", (wide, self.query_size), Role.ATTENTION_OUTPUT,
                                  "attn_output")
            yield from block.pair(layer, "mlp.fc1", (neurons, wide), Role.UP, "ffn_up", Role.UP_BIAS)
            yield from block.pair(layer, "mlp.fc2", (wide, neurons), Role.DOWN, "ffn_down", Role.DOWN_BIAS)
        yield TensorSpec("model.final_layernorm.weight", (wide,), Role.NORM, None, "output_norm.weight")
        yield TensorSpec("model.final_layernorm.bias", (wide,), Role.BIAS, None, "output_norm.bias")
        if not self.tie_word_embeddings:
            yield TensorSpec("lm_head.weight", table, Role.HEAD, None, "output.weight")
        yield TensorSpec("lm_head.bias", (self.vocab_size,), Role.BIAS, None, "output.bias")

    def fused(self) -> Iterator[Fused]:
        """Those that older GGUF files have as one."""
        for layer in range(self.num_hidden_layers):
            parts = tuple(block.projections(self, layer, bias=True))
            for first, kind in enumerate(("weight", "bias")):
                yield Fused("", parts[first::2], f"blk.{layer}.attn_qkv.{kind}")


def wire(config: Config, net: Network) -> None:
    """The whole model, top to bottom, as operations on a network."""
    x = net.embedding("model.embed_tokens.weight")
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        norm = prefix + "input_layernorm"
        h = net.norm(x, norm + ".weight", bias=norm + ".bias")
        h = net.attention(net.linear(h, block.queries_keys_values(prefix), bias=True), layer)
        y = net.linear(h, [prefix + "self_attn.dense"], bias=True)
        net.feed_forward(net.norm(x, norm + ".weight", bias=norm + ".bias"), layer, add_to=x)
        net.add(y, to=x)
    net.logits(x, "model.final_layernorm.weight",
               "model.embed_tokens" if config.tie_word_embeddings else "lm_head",
               norm_bias="model.final_layernorm.bias", head_bias="lm_head.bias")
