"""GPT-NeoX and Pythia: LayerNorm, a part of each head rotated, attention and feed-forward part side by side, each
behind a norm of its own, biases everywhere, no gate (Black et al. 2022, "GPT-NeoX-20B"; Biderman et al. 2023, "Pythia";
config.json calls them `gpt_neox`)."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar

from . import layer_norm_config
from .network import Network
from .tensors import Fused, Role, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Config(layer_norm_config.Config):
    """Hyper-parameters, named as in Hugging Face's config.json."""

    architecture: ClassVar[str] = "gptneox"
    READS: ClassVar[frozenset[str]] = frozenset({"attention_bias", "partial_rotary_factor", "rotary_pct",
                                                 "use_parallel_residual"})
    GGUF_READS: ClassVar[frozenset[str]] = frozenset({"use_parallel_residual"})
    gated: ClassVar[bool] = False
    gguf_act: ClassVar[str] = "gelu"

    use_parallel_residual: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.use_parallel_residual, bool):
            raise ValueError(f"use_parallel_residual is {self.use_parallel_residual!r}, expected true or false")

    @classmethod
    def hf_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        if not values.get("attention_bias", True):
            raise ValueError("a GPT-NeoX whose attention has no biases is not supported")
        named = {"hidden_act": "gelu", "partial_rotary_factor": values.get("rotary_pct", 0.25),
                 "rope_theta": values.get("rotary_emb_base"), **values}
        return {**super().hf_fields(named), "use_parallel_residual": values.get("use_parallel_residual", True)}

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], tensors: Set[str],
                    rope_tensors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        return {**super().gguf_fields(metadata, tensors, rope_tensors),
                "use_parallel_residual": metadata["gptneox.use_parallel_residual"]}

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        wide, neurons, table = self.hidden_size, self.intermediate_size, (self.vocab_size, self.hidden_size)
        yield TensorSpec("gpt_neox.embed_in.weight", table, Role.EMBEDDING, None, "token_embd.weight")
        for layer in range(self.num_hidden_layers):
            yield from _pair(layer, "input_layernorm", (wide,), Role.NORM, "attn_norm")
            yield from self._projections(layer)
            yield from _pair(layer, "attention.dense", (wide, self.query_size), Role.ATTENTION_OUTPUT, "attn_output")
            yield from _pair(layer, "post_attention_layernorm", (wide,), Role.NORM, "ffn_norm")
            yield from _pair(layer, "mlp.dense_h_to_4h", (neurons, wide), Role.UP, "ffn_up", Role.UP_BIAS)
            yield from _pair(layer, "mlp.dense_4h_to_h", (wide, neurons), Role.DOWN, "ffn_down", Role.DOWN_BIAS)
        yield TensorSpec("gpt_neox.final_layer_norm.weight", (wide,), Role.NORM, None, "output_norm.weight")
        yield TensorSpec("gpt_neox.final_layer_norm.bias", (wide,), Role.BIAS, None, "output_norm.bias")
        if not self.tie_word_embeddings:
            yield TensorSpec("embed_out.weight", table, Role.HEAD, None, "output.weight")

    def _projections(self, layer: int) -> Iterator[TensorSpec]:
        for part, role, rows in (("q", Role.QUERY, self.query_size), ("k", Role.KEY, self.key_value_size),
                                 ("v", Role.VALUE, self.key_value_size)):
            yield from _pair(layer, f"attention.{part}_proj", (rows, self.hidden_size), role, f"attn_{part}")

    def fused(self) -> Iterator[Fused]:
        """Those that files have as one, in Hugging Face's head by head."""
        for layer in range(self.num_hidden_layers):
            parts = tuple(self._projections(layer))
            for first, kind in enumerate(("weight", "bias")):
                yield Fused(f"{_prefix(layer)}attention.query_key_value.{kind}", parts[first::2],
                            f"blk.{layer}.attn_qkv.{kind}", by_head=self.num_attention_heads)


def _prefix(layer: int) -> str:
    return f"gpt_neox.layers.{layer}."


def _pair(layer: int, name: str, shape: tuple[int, ...], role: Role, gguf: str,
          bias: Role = Role.BIAS) -> Iterator[TensorSpec]:
    """A weight and its bias."""
    yield TensorSpec(f"{_prefix(layer)}{name}.weight", shape, role, layer, f"blk.{layer}.{gguf}.weight")
    yield TensorSpec(f"{_prefix(layer)}{name}.bias", shape[:1], bias, layer, f"blk.{layer}.{gguf}.bias")


def wire(config: Config, net: Network) -> None:
    """The whole model, top to bottom, as operations on a network."""
    x = net.embedding("gpt_neox.embed_in.weight")
    for layer in range(config.num_hidden_layers):
        prefix, aside = _prefix(layer), config.use_parallel_residual
        first, second = prefix + "input_layernorm", prefix + "post_attention_layernorm"
        h = net.norm(x, first + ".weight", bias=first + ".bias")
        h = net.attention(net.linear(h, [f"{prefix}attention.{part}_proj" for part in "qkv"], bias=True), layer)
        y = net.linear(h, [prefix + "attention.dense"], bias=True, add_to=None if aside else x)
        net.feed_forward(net.norm(x, second + ".weight", bias=second + ".bias"), layer, add_to=x)
        if aside:
            net.add(y, to=x)
    net.logits(x, "gpt_neox.final_layer_norm.weight",
               "gpt_neox.embed_in" if config.tie_word_embeddings else "embed_out",
               norm_bias="gpt_neox.final_layer_norm.bias")
