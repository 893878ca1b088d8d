"""OPT (Zhang et al. 2022, "OPT: Open Pre-trained Transformer Language Models"): LayerNorm, learned positions, biases
everywhere, and a feed-forward part without a gate, whose ReLU makes most neurons zero.

Only the models that normalise before attention and feed-forward part, and whose embeddings are as wide as the rest: all
of them but OPT-350M. llama.cpp has no OPT.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np

from . import config
from .config import hidden_act
from .network import Network
from .tensors import Role, TensorSpec

_DECODER = "model.decoder."
_FIRST_POSITION = 2
"""Fairseq's positions begin behind the padding token's, which is 1."""
_EPSILON = 1e-5
"""PyTorch's default; config.json does not say."""


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """Hyper-parameters, named as Llama's are (config.json: `ffn_dim`, `activation_function`)."""

    architecture: ClassVar[str] = "opt"
    gated: ClassVar[bool] = False

    @property
    def norm_epsilon(self) -> float:
        return _EPSILON

    @property
    def rotates_neighbours(self) -> bool:
        return False

    def rope_frequencies(self) -> np.ndarray:
        """Zeros: nothing is rotated, since positions are learned."""
        return np.zeros(self.head_dim // 2)

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        hidden_size, heads = values["hidden_size"], values["num_attention_heads"]
        if not values.get("do_layer_norm_before", True):
            raise ValueError("do_layer_norm_before is false, as in OPT-350M: norms behind attention are not supported")
        if (width := values.get("word_embed_proj_dim", hidden_size)) != hidden_size:
            raise ValueError(f"word_embed_proj_dim is {width!r} and hidden_size {hidden_size!r}, as in OPT-350M: "
                             "embeddings that are projected are not supported")
        if not values.get("enable_bias", True) or not values.get("layer_norm_elementwise_affine", True):
            raise ValueError("an OPT without biases, or without weights in its norms, is not supported")
        if values.get("_remove_final_layer_norm"):
            raise ValueError("an OPT without a norm before the output head is not supported")
        config.check_whole("num_attention_heads", heads)
        if hidden_size % heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of {heads} attention heads")
        return cls(
            hidden_size=hidden_size,
            intermediate_size=values["ffn_dim"],
            num_hidden_layers=values["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=hidden_size // heads,
            vocab_size=values["vocab_size"],
            max_position_embeddings=values["max_position_embeddings"],
            tie_word_embeddings=bool(values.get("tie_word_embeddings", True)),
            hidden_act=hidden_act(values.get("activation_function", "relu")),
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, vocab_size: int, tie_word_embeddings: bool,
                  tensors: Set[str] = frozenset(),
                  rope_tensors: Mapping[str, tuple[float, ...]] = MappingProxyType({})) -> Self:
        raise ValueError("llama.cpp has no OPT, so what a GGUF file of one holds is not known; "
                         "convert the model's safetensors files")

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor, in the order of use."""
        wide, neurons, table = self.hidden_size, self.intermediate_size, (self.vocab_size, self.hidden_size)
        yield _spec("embed_tokens.weight", table, Role.EMBEDDING)
        yield _spec("embed_positions.weight", (self.max_position_embeddings + _FIRST_POSITION, wide), Role.POSITION)
        for layer in range(self.num_hidden_layers):
            yield from _norm("self_attn_layer_norm", wide, layer)
            for part, role in (("q", Role.QUERY), ("k", Role.KEY), ("v", Role.VALUE), ("out", Role.ATTENTION_OUTPUT)):
                yield _spec(f"self_attn.{part}_proj.weight", (wide, wide), role, layer)
                yield _spec(f"self_attn.{part}_proj.bias", (wide,), Role.BIAS, layer)
            yield from _norm("final_layer_norm", wide, layer)
            yield _spec("fc1.weight", (neurons, wide), Role.UP, layer)
            yield _spec("fc1.bias", (neurons,), Role.UP_BIAS, layer)
            yield _spec("fc2.weight", (wide, neurons), Role.DOWN, layer)
            yield _spec("fc2.bias", (wide,), Role.DOWN_BIAS, layer)
        yield from _norm("final_layer_norm", wide)
        if not self.tie_word_embeddings:
            yield TensorSpec("lm_head.weight", table, Role.HEAD, None, "")


def _spec(name: str, shape: tuple[int, ...], role: Role, layer: int | None = None) -> TensorSpec:
    prefix = _DECODER if layer is None else _prefix(layer)
    return TensorSpec(prefix + name, shape, role, layer, "")


def _norm(name: str, columns: int, layer: int | None = None) -> Iterator[TensorSpec]:
    yield _spec(name + ".weight", (columns,), Role.NORM, layer)
    yield _spec(name + ".bias", (columns,), Role.BIAS, layer)


def _prefix(layer: int) -> str:
    return f"{_DECODER}layers.{layer}."


def wire(config: Config, net: Network) -> None:
    """The whole model, top to bottom, as operations on a network."""
    x = net.embedding(_DECODER + "embed_tokens.weight")
    net.add_positions(x, _DECODER + "embed_positions.weight", first=_FIRST_POSITION)
    for layer in range(config.num_hidden_layers):
        prefix = _prefix(layer)
        h = net.norm(x, prefix + "self_attn_layer_norm.weight", bias=prefix + "self_attn_layer_norm.bias")
        qkv = net.linear(h, [f"{prefix}self_attn.{part}_proj" for part in "qkv"], bias=True)
        h = net.attention(qkv, layer)
        net.linear(h, [prefix + "self_attn.out_proj"], bias=True, add_to=x)
        h = net.norm(x, prefix + "final_layer_norm.weight", bias=prefix + "final_layer_norm.bias")
        net.feed_forward(h, layer, add_to=x)
    net.logits(x, _DECODER + "final_layer_norm.weight",
               _DECODER + "embed_tokens" if config.tie_word_embeddings else "lm_head",
               norm_bias=_DECODER + "final_layer_norm.bias")
