"""What each family reads of config.json, and refuses: nothing that changes what is computed is passed over."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_gguf import CONTEXT, KINDS, metadata_of

from edgert.models.config import Config
from edgert.models.families import FAMILIES, MODEL_TYPES

MODELS = Path(__file__).parents[1] / "golden" / "models"
NAMES = sorted(path.name for path in MODELS.iterdir())


def values_of(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((MODELS / name / "config.json").read_text())
    return values


def config_of(values: dict[str, Any]) -> Config:
    return MODEL_TYPES[values["model_type"]].Config.from_hf(values)


def again(config: Config) -> Config:
    return type(config).from_json(json.loads(json.dumps(config.to_json())))


def test_every_family_has_a_model_here() -> None:
    assert {config_of(values_of(name)).architecture for name in NAMES} == FAMILIES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_says_the_same(name: str) -> None:
    config = config_of(values_of(name))
    assert again(config) == config
    assert FAMILIES[config.architecture].Config is type(config)


@pytest.mark.parametrize("name", KINDS)
def test_a_bundle_of_a_gguf_says_the_same(name: str) -> None:
    architecture, metadata, tensors, factors = metadata_of(name)
    config = FAMILIES[architecture].Config.from_gguf(
        metadata, vocab_size=259, tie_word_embeddings=False, tensors=tensors, rope_tensors=factors)
    assert again(config) == config
    assert config.max_position_embeddings == CONTEXT


@pytest.mark.parametrize(("name", "changes", "message"), [
    ("llama-f16", {"use_sliding_window": True},
     "use_sliding_window is True, and with that setting edgert does not know"),
    ("qwen3", {"attention_bias": True}, "attention_bias is True"),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]},
     "layer_types has layers with a window, and use_sliding_window is not true"),
    ("qwen3-window", {"layer_types": ["sliding_attention", "chunked_attention"]}, "layer_types is"),
    ("qwen2-window", {"layer_types": None, "max_window_layers": "1"}, "max_window_layers is '1', expected a whole"),
    ("qwen2-window", {"sliding_window": 17.5}, "sliding_window is 17.5, expected a whole number"),
    ("mistral", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping is 30.0"),
    ("mistral", {"num_local_experts": 8}, "num_local_experts is 8"),
    ("phi3", {"lm_head_bias": True}, "lm_head_bias is True"), ("phi3", {"mlp_bias": True}, "mlp_bias is True"),
    ("granite", {"mlp_bias": True}, "mlp_bias is True"), ("granite", {"logits_scaling": 0}, "logits_scaling is 0.0"),
    ("granite", {"position_embedding_type": "nope"}, "position_embedding_type is 'nope'"),
    ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers is not a list of 0 and 1"),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
    ("olmo2", {"clip_qkv": 8.0}, "clip_qkv is 8.0"), ("olmo2", {"attention_bias": True}, "attention_bias is True"),
    ("stablelm", {"qk_layernorm": True}, "head_dim is 12, expected a multiple of 32 where each head has a LayerNorm"),
    ("stablelm", {"qk_layernorm": "yes"}, "qk_layernorm is 'yes', expected true or false"),
    ("stablelm", {"use_parallel_residual": 1}, "use_parallel_residual is 1, expected true or false"),
    ("phi2", {"qk_layernorm": True}, "qk_layernorm is True"),
    ("phi2", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.3}}, "3 of 12 components"),
    ("gptneox", {"attention_bias": False}, "whose attention has no biases"),
    ("gptneox", {"hidden_act": "gelu_10"}, "activation 'gelu_10' is not known"),
    ("llama3-tied", {"embedding_multiplier": 12.0}, "embedding_multiplier is 12.0"),
    ("qwen2", {"layer_types": ["sliding_attention"]}, "layer_types has layers with a window"),
    ("qwen3moe", {"mlp_only_layers": [1]}, r"mlp_only_layers is \[1\]"),
    ("qwen3moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
    ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is 8.0"),
])
def test_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of({**values_of(name), **changes})


@pytest.mark.parametrize(("name", "metadata", "message"), [
    ("llama", {"llama.attention.scale": 0.5}, "llama.attention.scale is 0.5, and with that edgert does not know"),
    ("llama", {"llama.expert_count": 8}, "llama.expert_count is 8"),
    ("qwen3", {"qwen3.attention.sliding_window": 8}, "qwen3.attention.sliding_window is 8"),
    ("granite", {"granite.rope.scaling.finetuned": False}, "a Granite without rotary positions"),
    ("llama", {"llama.attention.value_length": 32}, "values of 32 components and keys of 64 are not supported"),
    ("olmo2", {"olmo2.attention.clamp_kqv": 8.0}, "olmo2.attention.clamp_kqv is 8.0"),
    ("olmo2", {"olmo2.rope.dimension_count": 32}, "rotary positions over 32 of a head's 64 components"),
])
def test_gguf_refused(name: str, metadata: dict[str, Any], message: str) -> None:
    architecture, usual, tensors, factors = metadata_of(name)
    with pytest.raises(ValueError, match=message):
        FAMILIES[architecture].Config.from_gguf({**usual, **metadata}, vocab_size=259, tie_word_embeddings=False,
                                                tensors=tensors, rope_tensors=factors)


def test_what_config_json_leaves_out() -> None:
    """What transformers takes where older files say nothing."""
    usual = {name: {key: value for key, value in values_of(name).items() if key != "rope_parameters"}
             for name in ("stablelm", "phi2", "gptneox", "smollm3", "granite")}
    assert [config_of(usual[name]).rotary_dim for name in ("phi2", "smollm3")] == [6, 8]
    assert config_of({**usual["stablelm"], "head_dim": 16}).rotary_dim == 4
    assert config_of({**usual["gptneox"], "rotary_pct": 0.5, "rotary_emb_base": 500}).rotary_dim == 4
    assert config_of({**usual["gptneox"], "rotary_emb_base": 500}).to_json()["rope_theta"] == 500
    smollm3 = {name: value for name, value in usual["smollm3"].items() if name not in (
        "tie_word_embeddings", "no_rope_layers", "no_rope_layer_interval")} | {"num_hidden_layers": 4}
    assert config_of(smollm3).tie_word_embeddings and config_of(smollm3).to_json()["rope_theta"] == 2000000.0
    assert [config_of(smollm3).rope_table(layer) for layer in range(4)] == [0, 0, 0, None]
    phi3 = values_of("phi3")
    del phi3["original_max_position_embeddings"], phi3["rope_parameters"]["original_max_position_embeddings"]
    older = {"type": "su", **{name: phi3["rope_parameters"][name] for name in ("short_factor", "long_factor")}}
    assert config_of({**phi3, "rope_parameters": None, "rope_scaling": older}).to_json()["rope_scaling"][
        "original_max_position_embeddings"] == 4096


@pytest.mark.parametrize(("name", "changes", "windows"), [
    ("qwen2-window", {}, [None, 17, 17]), ("qwen2-window", {"layer_types": None}, [None, 17, 17]),
    ("qwen2-window", {"layer_types": None, "max_window_layers": 28}, [None] * 3),
    ("qwen2-window", {"sliding_window": None}, [None] * 3), ("qwen2-window", {"sliding_window": 128}, [None] * 3),
    ("qwen2-window", {"use_sliding_window": False, "layer_types": None}, [None] * 3),
    ("qwen3-window", {}, [9, None]),
    ("qwen2moe-window", {"layer_types": None}, [13, None, None]),
    ("qwen2moe-window", {"layer_types": None, "max_window_layers": 3}, [13, None, 13]),
    ("qwen3moe-window", {}, [21, 21]),
    ("smollm3-window", {}, [None, 11, None]), ("smollm3-window", {"layer_types": None}, [None, 11, None])])
def test_windows(name: str, changes: dict[str, Any], windows: list[int | None]) -> None:
    """Of each layer, as transformers has them; where there is none, bundles are as before any was read."""
    config = config_of({**values_of(name), **changes})
    assert [config.window(layer) for layer in range(config.num_hidden_layers)] == windows
    assert ("sliding_window" in config.to_json()) == any(windows)
    assert again(config) == config


def test_a_context_settles_longrope() -> None:
    """Up to the original context its short factors, and no more positions than those; beyond it the long ones."""
    config = config_of(values_of("phi3"))
    short, long = config.for_context(64), config.for_context(65)
    assert (short.max_position_embeddings, long.max_position_embeddings) == (64, 128)
    assert (short.rope_frequencies() > long.rope_frequencies()).all()
    assert (config.rope_frequencies() == short.rope_frequencies()).all()
    assert short.for_context(1) == short and short.for_context(65) != short
    assert long.for_context(128) == long and long.for_context(64) != long
    plain = config_of(values_of("qwen3-tied-yarn"))
    assert plain.for_context(1) is plain.for_context(128) is plain


def test_attention_of_ministral_3_gets_sharper() -> None:
    """With each of its original contexts; and bundles from before that was known say nothing of it."""
    values = values_of("ministral3-long")
    config = config_of(values)
    assert config.max_position_embeddings == 128 and again(config) == config
    scales = config.query_scales(np.array([0, 15, 16, 31, 32, 127]))
    assert scales is not None and np.allclose(scales, 1 + 0.4 * np.log([1, 1, 2, 2, 3, 8]))
    assert (config.angle_tables, config_of(values_of("mistral")).angle_tables) == (2, 1)
    values["rope_parameters"]["original_max_position_embeddings"] = 128
    without = config_of(values)
    assert without.query_scales(np.arange(3)) is None and "llama_4_scaling_beta" not in without.to_json()
    values["rope_parameters"] |= {"original_max_position_embeddings": 16, "llama_4_scaling_beta": -1.0}
    with pytest.raises(ValueError, match=r"llama_4_scaling_beta is -1\.0, expected a number above 0"):
        config_of(values)
