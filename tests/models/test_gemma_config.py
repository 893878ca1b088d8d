"""Gemma 2 and 3: what their configurations say, and their two formats."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors.numpy import load_file, save_file
from tokenizers import pre_tokenizers

from edgert.converters.gguf_source import open_gguf
from edgert.converters.safetensors_source import open_safetensors
from edgert.converters.source import Source
from edgert.models import gemma2, gemma3
from edgert.models.config import Config

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
GEMMA_3_4B: dict[str, Any] = {
    "model_type": "gemma3", "eos_token_id": [1, 106], "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}, "vision_config": {}}
"""config.json as published: what is transformers' default is left out."""


def test_what_is_left_out_is_the_default() -> None:
    config = gemma3.Config.from_hf(GEMMA_3_4B)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.vocab_size) == (
        8, 4, 256, 262208)
    assert config.attention_scale == 1 / 16 and config.hidden_act == "gelu_tanh" and config.tie_word_embeddings
    assert [config.window(layer) for layer in range(6)] == [1024] * 5 + [None]
    everywhere, local = config.rope_tables()
    assert [config.rope_table(layer) for layer in range(6)] == [1] * 5 + [0]
    np.testing.assert_allclose(everywhere[[0, 1]], [1 / 8, 1e6 ** (-2 / 256) / 8])
    np.testing.assert_allclose(local[[0, 1]], [1, 1e4 ** (-2 / 256)])
    assert config.logit_softcap is None and config.attention_softcap is None


def test_gemma_2_caps_and_sees_windows_in_every_second_layer() -> None:
    config = gemma2.Config.from_hf({"model_type": "gemma2", "num_hidden_layers": 4})
    assert (config.attention_softcap, config.logit_softcap) == (50.0, 30.0)
    assert [config.window(layer) for layer in range(4)] == [4096, None] * 2
    assert [len(config.rope_tables()), config.rope_table(0), config.rope_table(1)] == [1, 0, 0]


METADATA = {"block_count": 46, "embedding_length": 4608, "feed_forward_length": 36864, "attention.head_count": 32,
            "attention.head_count_kv": 16, "attention.key_length": 128, "attention.value_length": 128,
            "context_length": 8192, "attention.layer_norm_rms_epsilon": 1e-6, "attention.sliding_window": 4096}


@pytest.mark.parametrize(("family", "layers", "divisor"), [(gemma2, 46, 144), (gemma2, 42, 128), (gemma3, 62, 144),
                                                           (gemma3, 34, 128)])
def test_what_a_gguf_file_does_not_say(family: Any, layers: int, divisor: int) -> None:
    """The largest model divides scores by another number, which llama.cpp knows by its layers."""
    metadata = {f"{family.Config.architecture}.{name}": value
                for name, value in {**METADATA, "block_count": layers}.items()}
    config = family.Config.from_gguf(metadata, vocab_size=256000, tie_word_embeddings=True)
    assert config.attention_scale == divisor ** -0.5
    assert (config.attention_softcap, config.logit_softcap) == ((50.0, 30.0) if family is gemma2 else (None, None))
    assert config.rope_theta == (1e4 if family is gemma2 else 1e6)


@pytest.mark.parametrize("family", [gemma2, gemma3])
def test_round_trip(family: Any) -> None:
    config = family.Config.from_hf({"num_hidden_layers": 12})
    assert family.Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(("values", "message"), [
    ({"attention_bias": True}, "biases in attention"), ({"layer_types": ["full_attention"]}, "layer_types"),
    ({"layer_types": ["chunked_attention"] * 26}, "layer_types"), ({"sliding_window": None}, "sliding_window"),
    ({"use_bidirectional_attention": True}, "what follows"), ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ({"attn_logit_softcapping": -1}, "attn_logit_softcapping"), ({"sliding_window_pattern": 0}, "pattern"),
    ({"hidden_activation": "gelu_10"}, "activation 'gelu_10'"), ({"rope_theta": -1.0}, "rope_theta")])
@pytest.mark.parametrize("family", [gemma2, gemma3])
def test_what_no_model_has(family: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family.Config.from_hf(values)


@pytest.mark.parametrize("scaling", [{"rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
                                     {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}])
def test_rotary_positions_that_are_not_known(scaling: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not known"):
        gemma3.Config.from_hf(scaling)


def _write_gguf(path: Path, config: gemma3.Config, source: Source) -> Path:
    """A model of transformers as llama.cpp has it: norms that hold the sum."""
    writer = GGUFWriter(path, "gemma3")
    for name, value in {
            "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": config.head_dim, "attention.value_length": config.head_dim,
            "attention.sliding_window": config.sliding_window, "attention.sliding_window_pattern": 2}.items():
        writer.add_uint32(f"gemma3.{name}", value)
    for name, number in {"attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.freq_base": config.rope_theta,
                         "rope.freq_base_swa": config.rope_local_base_freq,
                         "rope.scaling.factor": config.rope_factor}.items():
        writer.add_float32(f"gemma3.{name}", number)
    writer.add_string("gemma3.rope.scaling.type", "linear")
    writer.add_string("tokenizer.ggml.model", "gpt2")
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [3, 3, *[1] * 257])
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    writer.add_uint32("tokenizer.ggml.eos_token_id", 1)
    for spec in config.tensors():
        writer.add_tensor(spec.gguf, source.tensors[spec.name].read(0, spec.shape[0]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _same(one: Source, other: Source) -> None:
    assert dict(one.tensors).keys() == dict(other.tensors).keys()
    for name, tensor in one.tensors.items():
        rows = tensor.shape[0]
        assert np.array_equal(tensor.read(0, rows), other.tensors[name].read(0, rows)), name


def test_the_same_model_in_a_gguf_file(tmp_path: Path) -> None:
    source = open_safetensors(GOLDEN / "gemma3")
    config = source.config
    assert isinstance(config, gemma3.Config)
    again = open_gguf(_write_gguf(tmp_path / "m.gguf", config, source))
    assert again.config == replace(config, rms_norm_eps=float(np.float32(config.rms_norm_eps)))
    _same(source, again)
    weight = load_file(GOLDEN / "gemma3" / "model.safetensors")["model.norm.weight"]
    assert np.array_equal(again.tensors["model.norm.weight"].read(0, len(weight)), weight + 1)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_model_that_sees_images_too(tmp_path: Path, prefix: str) -> None:
    values = json.loads((GOLDEN / "gemma3" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": values}))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((GOLDEN / "gemma3" / name).read_bytes())
    weights = {prefix + name.removeprefix("model."): array
               for name, array in load_file(GOLDEN / "gemma3" / "model.safetensors").items()}
    weights |= {"vision_tower.vision_model.embeddings.weight": np.zeros((3, 3), np.float32),
                "model.multi_modal_projector.weight": np.zeros(3, np.float32)}
    save_file(weights, tmp_path / "model.safetensors")
    source, plain = open_safetensors(tmp_path), open_safetensors(GOLDEN / "gemma3")
    assert isinstance(source.config, Config) and source.config == plain.config
    _same(source, plain)
