"""StableLM 3B, and StableLM 2: Llama's block with LayerNorm, a part of each head rotated, and in some models biases on
the q, k and v projections, or attention and feed-forward part side by side (Bellagente et al. 2024, "Stable LM 2 1.6B
Technical Report").

Not StableLM 2 12B, which has a LayerNorm of its own for each head.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar

from . import block, layer_norm_config
from .network import Network
from .tensors import Role, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Config(layer_norm_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "stablelm"
    READS: ClassVar[frozenset[str]] = frozenset({"partial_rotary_factor", "use_qkv_bias", "use_parallel_residual"})
    GGUF_READS: ClassVar[frozenset[str]] = frozenset({"use_parallel_residual"})
    usual_share: ClassVar[float] = 0.25

    use_qkv_bias: bool
    use_parallel_residual: bool
    """Whether attention and feed-forward part have one norm and both start from the same x."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("use_qkv_bias", "use_parallel_residual"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected true or false")

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().hf_fields(values), **{name: values.get(name, False)
                                                for name in ("use_qkv_bias", "use_parallel_residual")}}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        return {**super().gguf_fields(metadata, tensors, rope_tensors),  # tensors say it, as llama.cpp has it
                "use_qkv_bias": "blk.0.attn_q.bias" in tensors,
                "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors}

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        embedding, *after = block.around(self, ())
        yield embedding
        for layer in range(self.num_hidden_layers):
            yield from block.pair(layer, "input_layernorm", (self.hidden_size,), Role.NORM, "attn_norm")
            yield from block.projections(self, layer, bias=self.use_qkv_bias)
            yield block.attention_output(self, layer)
            if not self.use_parallel_residual:
                yield from block.pair(layer, "post_attention_layernorm", (self.hidden_size,), Role.NORM, "ffn_norm")
            yield from block.gated(self, layer)
        norm, *head = after
        yield norm
        yield TensorSpec("model.norm.bias", norm.shape, Role.BIAS, None, "output_norm.bias")
        yield from head


def wire(config: Config, net: Network) -> None:
    """The whole model, top to bottom, as operations on a network."""
    x = net.embedding("model.embed_tokens.weight")
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        first, second = prefix + "input_layernorm", prefix + "post_attention_layernorm"
        h = net.norm(x, first + ".weight", bias=first + ".bias")
        h = net.attention(net.linear(h, block.queries_keys_values(prefix), bias=config.use_qkv_bias), layer)
        if config.use_parallel_residual:
            y = net.linear(h, [prefix + "self_attn.o_proj"])
            net.feed_forward(net.norm(x, first + ".weight", bias=first + ".bias"), layer, add_to=x)
            net.add(y, to=x)
        else:
            net.linear(h, [prefix + "self_attn.o_proj"], add_to=x)
            net.feed_forward(net.norm(x, second + ".weight", bias=second + ".bias"), layer, add_to=x)
    net.logits(x, "model.norm.weight", "model.embed_tokens" if config.tie_word_embeddings else "lm_head",
               norm_bias="model.norm.bias")
