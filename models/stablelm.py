"""StableLM 3B, and StableLM 2: Llama's block with LayerNorm, a part of each head rotated, and in some models biases on
the q, k and v projections, or attention and feed-forward part side by side (Bellagente et al. 2024, "Stable LM 2 1.6B
Technical Report").

StableLM 2 12B has a LayerNorm of its own for each head's queries and keys.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar

from edgert.kernels.formats import BLOCK

from . import block, layer_norm_config
from .network import Network
from .tensors import Joined, Role, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Config(layer_norm_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "stablelm"
    READS: ClassVar[frozenset[str]] = frozenset({"partial_rotary_factor", "use_qkv_bias", "use_parallel_residual",
                                                 "qk_layernorm"})
    GGUF_READS: ClassVar[frozenset[str]] = frozenset({"use_parallel_residual"})
    usual_share: ClassVar[float] = 0.25
    LATER: ClassVar[frozenset[str]] = layer_norm_config.Config.LATER | {"qk_layernorm"}

    use_qkv_bias: bool
    use_parallel_residual: bool
    """Whether attention and feed-forward part have one norm and both start from the same x."""

    qk_layernorm: bool = False
    """Whether each head's queries and keys have a LayerNorm of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected true or false")
        if self.qk_layernorm and self.head_dim % BLOCK:
            raise ValueError(f"head_dim is {self.head_dim}, expected a multiple of {BLOCK} where each head has a "
                             "LayerNorm")

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().hf_fields(values), **{name: values.get(name, False) for name in _SWITCHES}}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        return {**super().gguf_fields(metadata, tensors, rope_tensors),  # tensors say it, as llama.cpp has it
                "use_qkv_bias": "blk.0.attn_q.bias" in tensors,
                "qk_layernorm": "blk.0.attn_q_norm.weight" in tensors,
                "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors}

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        embedding, *after = block.around(self, ())
        yield embedding
        for layer in range(self.num_hidden_layers):
            yield from block.pair(layer, "input_layernorm", (self.hidden_size,), Role.NORM, "attn_norm")
            yield from block.projections(self, layer, bias=self.use_qkv_bias)
            if self.qk_layernorm:
                yield from self._head_norms(layer)
            yield block.attention_output(self, layer)
            if not self.use_parallel_residual:
                yield from block.pair(layer, "post_attention_layernorm", (self.hidden_size,), Role.NORM, "ffn_norm")
            yield from block.gated(self, layer)
        norm, *head = after
        yield norm
        yield TensorSpec("model.norm.bias", norm.shape, Role.BIAS, None, "output_norm.bias")
        yield from head

    def _head_norms(self, layer: int) -> Iterator[TensorSpec]:
        for part, role, size in (("q", Role.QUERY_NORM, self.query_size), ("k", Role.KEY_NORM, self.key_value_size)):
            yield block.of_layer(layer, f"self_attn.{part}_layernorm.weight", (size,), role, f"attn_{part}_norm.weight")

    def joined(self) -> Iterator[Joined]:
        """The weights of heads, which Hugging Face's files have one by one."""
        for layer in range(self.num_hidden_layers if self.qk_layernorm else 0):
            for norm in self._head_norms(layer):
                name = norm.name.removesuffix("weight")
                yield Joined(norm, tuple(f"{name}norms.{head}.weight"
                                         for head in range(norm.shape[0] // self.head_dim)))


_SWITCHES = ("use_qkv_bias", "use_parallel_residual", "qk_layernorm")


def wire(config: Config, net: Network) -> None:
    """The whole model, top to bottom, as operations on a network."""
    x = net.embedding("model.embed_tokens.weight")
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        first, second = prefix + "input_layernorm", prefix + "post_attention_layernorm"
        h = net.norm(x, first + ".weight", bias=first + ".bias")
        qkv = net.linear(h, block.queries_keys_values(prefix), bias=config.use_qkv_bias)
        if config.qk_layernorm:
            net.head_layer_norms(qkv, prefix + "self_attn.q_layernorm.weight", prefix + "self_attn.k_layernorm.weight")
        h = net.attention(qkv, layer)
        if config.use_parallel_residual:
            y = net.linear(h, [prefix + "self_attn.o_proj"])
            net.feed_forward(net.norm(x, first + ".weight", bias=first + ".bias"), layer, add_to=x)
            net.add(y, to=x)
        else:
            net.linear(h, [prefix + "self_attn.o_proj"], add_to=x)
            net.feed_forward(net.norm(x, second + ".weight", bias=second + ".bias"), layer, add_to=x)
    net.logits(x, "model.norm.weight", "model.embed_tokens" if config.tie_word_embeddings else "lm_head",
               norm_bias="model.norm.bias")
