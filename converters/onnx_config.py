"""The hyper-parameters of a model of onnxruntime-genai, whose genai_config.json has the sizes, and the graph the rest.

Its model builder writes no config.json. Norms' epsilon, the activation and the rotary frequencies are in the graph: the
latter as a table of cosines and sines, `cos_cache` and `sin_cache`, which holds them after whatever scaling.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgert.errors import SourceError, UnsupportedError
from edgert.models.config import Config
from edgert.models.families import MODEL_TYPES
from edgert.models.rotary_config import Rotary

from .onnx_file import Stored
from .onnx_graph import NORMS, Graph, attribute
from .reading import family_config
from .source import SourceTensor

_ACTIVATIONS = {frozenset({"Sigmoid"}): "silu", frozenset({"Relu"}): "relu", frozenset({"Relu", "Pow"}): "relu2",
                frozenset({"Gelu"}): "gelu", frozenset({"FastGelu"}): "gelu_pytorch_tanh"}
"""By the operators between a layer's matrices, but for those that multiply and split."""
_POSITIONS = 1024
"""Of the rotary table that are looked at: enough to make up for float16."""
_TOLERANCE = {"FLOAT": 1e-5, "FLOAT16": 2e-3, "BFLOAT16": 1e-2}
"""How far a cosine and a sine may be from those of an angle."""


def genai_values(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The tokens in genai_config.json, named as in config.json. Raises SourceError."""
    return {name: value for name in ("bos_token_id", "eos_token_id")
            if (value := genai_model(settings, path).get(name)) is not None}


def genai_model(settings: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The object `model` in genai_config.json, with its `decoder`. Raises SourceError."""
    model = settings.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("decoder"), dict):
        raise SourceError(f"{path}: has no model with a decoder: it is not that of a language model")
    return model


def genai_config(settings: Mapping[str, Any], path: Path, graph: Graph, found: Mapping[str, SourceTensor]) -> Config:
    """A family's hyper-parameters out of what genai_config.json at `path`, the graph and the tensors' shapes say.

    found: tensors by the tails of their names. Raises SourceError where something is missing, UnsupportedError for a
    family that edgert does not know.
    """
    model = genai_model(settings, path)
    decoder = model["decoder"]
    values = {
        "model_type": model.get("type"), "vocab_size": _rows(found, "embed_tokens.weight", path),
        "intermediate_size": _neurons(found, path), "max_position_embeddings": model["context_length"]
        if "context_length" in model else _missing(path, "context_length"),
        "head_dim": decoder.get("head_size"), "rms_norm_eps": _epsilon(graph), "hidden_act": _activation(graph),
        "attention_bias": "layers.0.attn.q_proj.bias" in found or "layers.0.attn.qkv_proj.bias" in found,
        **{name: decoder[name] if name in decoder else _missing(path, name)
           for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")}}
    _check_attention(graph, values, decoder.get("sliding_window"), path)
    config = family_config(path, values["model_type"], MODEL_TYPES, lambda family: family.from_hf(values))
    return _with_rotation(config, graph, path) if isinstance(config, Rotary) else config


def _missing(path: Path, what: str) -> Any:
    raise SourceError(f"{path}: does not say {what}: put the config.json of the original model beside it")


def _rows(found: Mapping[str, SourceTensor], name: str, path: Path) -> int:
    return found[name].shape[0] if name in found else _missing(path, f"which tensor is {name}")


def _neurons(found: Mapping[str, SourceTensor], path: Path) -> int:
    down = found.get("layers.0.mlp.down_proj.weight")
    return down.shape[1] if down is not None else _missing(path, "intermediate_size")


def _epsilon(graph: Graph) -> float | None:
    """Of the first norm. It is a float32; the shortest number that is the same one is meant."""
    for node in graph.nodes:
        if node.op_type in NORMS and (epsilon := attribute(node, "epsilon", 0.0)) > 0:
            return float(str(np.float32(epsilon)))
    return None


def _activation(graph: Graph) -> str:
    """Of the first layer, as config.json calls it; the names of the operators where they are none of those known."""
    kinds = {node.op_type for node in graph.nodes if "/layers.0/mlp/" in node.name}
    kinds -= {"MatMul", "MatMulNBits", "Add", "Mul", "Split", "Constant"}
    return _ACTIVATIONS.get(frozenset(kinds), " and ".join(sorted(kinds)))


def _check_attention(graph: Graph, values: Mapping[str, Any], window: object, path: Path) -> None:
    """Raises UnsupportedError where attention is more than the hyper-parameters that are found here say. window: what
    genai_config.json says of one; there is none where it has no layers, as the builder has it for the CPU."""
    head, windowed = values["head_dim"], isinstance(window, dict) and window.get("layers", True) != []
    for node in graph.nodes:
        if node.op_type not in ("GroupQueryAttention", "MultiHeadAttention"):
            continue
        scale = attribute(node, "scale", 0.0)
        odd = {"a soft cap": attribute(node, "softcap", 0.0) > 0,
               "a sliding window": windowed or attribute(node, "local_window_size", -1) > 0,
               "a smooth softmax": attribute(node, "smooth_softmax", 0) > 0,
               "neighbours that rotate together": attribute(node, "rotary_interleaved", 0) != 0,
               "a scale of its own": scale != 0 and isinstance(head, int) and abs(scale * head ** 0.5 - 1) > 1e-3}
        if what := [name for name, is_so in odd.items() if is_so]:
            raise UnsupportedError(f"{path}: attention has {what[0]}, about which this file says nothing: put the "
                                   "config.json of the original model beside it")


def _with_rotation(config: Rotary, graph: Graph, path: Path) -> Config:
    """The config with the rotary frequencies of the graph's table: a base and, where that is not all, divisors."""
    cosines, sines = _rotary_table(graph, path)
    frequencies = _frequencies(cosines, sines, config, graph.path)
    half = np.arange(len(frequencies)) / len(frequencies)
    theta = float(frequencies[1] ** (-1 / half[1])) if len(half) > 1 else 10000.0
    rounded = float(f"{theta:.3g}")
    tolerance = _TOLERANCE[cosines.type]
    if abs(rounded / theta - 1) < 100 * tolerance:
        theta = rounded
    factors = theta ** -half / frequencies
    if (np.abs(factors - 1) < 10 * tolerance).all():
        return replace(config, rope_theta=theta)
    return replace(config, rope_theta=theta, rope_frequency_factors=tuple(float(factor) for factor in factors))


def _rotary_table(graph: Graph, path: Path) -> tuple[Stored, Stored]:
    """The constants with cosines and sines, each of shape (positions, head_dim / 2)."""
    places = {"GroupQueryAttention": 7, "RotaryEmbedding": 2}
    names = {tuple(node.input[place:place + 2]) for node in graph.nodes
             if (place := places.get(node.op_type)) is not None and len(node.input) > place + 1 and node.input[place]}
    if len(names) == 1:
        found = [graph.stored(name) for name in names.pop()]
        if all(of is not None and len(of.shape) == 2 and of.type in _TOLERANCE for of in found):
            cosines, sines = (of for of in found if of is not None)
            if cosines.shape == sines.shape:
                return cosines, sines
    return _missing(path, "rope_theta, nor is there one table of rotary angles in the graph")


def _frequencies(cosines: Stored, sines: Stored, config: Rotary, path: Path) -> np.ndarray:
    """Rotary angles per position, float64 of shape (head_dim / 2,): those of position 1, then of 2, 4, 8 ..., of which
    each makes the last estimate better."""
    positions, half = min(cosines.shape[0], _POSITIONS), cosines.shape[1]
    if 2 * half != config.rotary_dim:
        raise UnsupportedError(f"{path}: rotary positions over {2 * half} of {config.head_dim} components of a head "
                               "are not supported")
    c, s = (of.floats(0, positions * half).reshape(positions, half).astype(np.float64) for of in (cosines, sines))
    if positions < 2 or not (np.abs(np.hypot(c, s) - 1) < _TOLERANCE[cosines.type]).all():
        raise UnsupportedError(f"{path}: its table of rotary angles is not one of cosines and sines alone, and edgert "
                               "knows no rope scaling that changes their size")
    angles = np.arctan2(s, c)
    frequencies = angles[1]
    for position in 2 ** np.arange(1, positions.bit_length() - 1):
        expected = frequencies * position
        turn = 2 * np.pi
        frequencies = (expected + (angles[position] - expected + np.pi) % turn - np.pi) / position
    if not (frequencies > 0).all():
        raise SourceError(f"{path}: its table of rotary angles cannot be one: the file is damaged")
    return frequencies
