import json

import numpy as np
import pytest

from edgert.models import llama, opt, qwen2
from edgert.models.families import FAMILIES
from edgert.models.tensors import Role

LLAMA3_2 = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2,
            "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 100,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "tie_word_embeddings": True}
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}

# transformers 5.23.0, float32:
#   config = LlamaConfig(hidden_size=512, num_attention_heads=16, head_dim=32, max_position_embeddings=131072,
#                        rope_theta=500000.0, rope_scaling={"rope_theta": 500000.0, **LLAMA3_ROPE})
#   transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
LLAMA3_FREQUENCIES = [
    1.0, 0.440366626, 0.193922758, 0.0853971019, 0.0376060307, 0.0165604409, 0.00729266508, 0.00321144611,
    0.000429556705, 1.94616387e-05, 8.57025589e-06, 3.77405445e-06, 1.66196742e-06, 7.31874934e-07, 3.22293289e-07,
    1.41927202e-07]

GGUF = {"block_count": 2, "context_length": 64, "embedding_length": 32, "feed_forward_length": 48,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-6}


@pytest.mark.parametrize("where", ["rope_scaling", "rope_parameters"])
def test_llama3_frequencies(where: str) -> None:
    """As config.json has it up to transformers 4, and from 5 on."""
    rope = LLAMA3_ROPE if where == "rope_scaling" else {**LLAMA3_ROPE, "rope_theta": 500000.0}
    config = llama.Config.from_hf({**LLAMA3_2, where: rope})
    np.testing.assert_allclose(config.rope_frequencies(), LLAMA3_FREQUENCIES, rtol=5e-7)


def test_rope_factors_of_gguf() -> None:
    """llama.cpp stores Llama 3's scaling as divisors."""
    plain = llama.Config.from_hf(LLAMA3_2)
    factors = tuple((plain.rope_frequencies() / np.array(LLAMA3_FREQUENCIES)).tolist())
    metadata = {f"llama.{name}": value for name, value in {**GGUF, "embedding_length": 512, "attention.head_count": 16,
                                                           "rope.freq_base": 500000.0}.items()}
    config = llama.Config.from_gguf(metadata, vocab_size=100, tie_word_embeddings=True, rope_frequency_factors=factors)
    np.testing.assert_allclose(config.rope_frequencies(), LLAMA3_FREQUENCIES, rtol=1e-12)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_from_gguf(architecture: str) -> None:
    family = FAMILIES[architecture]
    metadata = {f"{architecture}.{name}": value for name, value in GGUF.items()}
    config = family.Config.from_gguf(metadata, vocab_size=100, tie_word_embeddings=False)
    assert (config.head_dim, config.query_size, config.key_value_size) == (8, 32, 16)
    assert config.rope_theta == 10000.0
    assert config.rope_pairing == ("interleaved" if architecture == "llama" else "half")
    assert [spec.shape for spec in config.tensors() if spec.role is Role.HEAD] == [(100, 32)]
    assert family.Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("extra", [{}, {"rope_scaling": LLAMA3_ROPE}, {"head_dim": None},
                                   {"num_key_value_heads": None}])
@pytest.mark.parametrize("family", [llama, qwen2])
def test_from_hf(family: object, extra: dict) -> None:
    config = family.Config.from_hf({**LLAMA3_2, **extra})  # type: ignore[attr-defined]
    assert config.head_dim == 32
    assert config.num_key_value_heads == (16 if "num_key_value_heads" in extra else 4)
    assert config.rope_pairing == "half"
    assert not [spec for spec in config.tensors() if spec.role is Role.HEAD]
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(("written", "act"), [
    ("silu", "silu"), ("relu", "relu"), ("relu2", "relu2"), ("relu_squared", "relu2"), ("gelu", "gelu"),
    ("gelu_pytorch_tanh", "gelu_tanh"), ("gelu_new", "gelu_tanh")])
@pytest.mark.parametrize("family", [llama, qwen2])
def test_activations(family: object, written: str, act: str) -> None:
    """A bundle names the activation where it is not silu: so bundles from when there was no other can be read."""
    config = family.Config.from_hf({**LLAMA3_2, "hidden_act": written})  # type: ignore[attr-defined]
    assert config.hidden_act == act
    assert config.to_json().get("hidden_act") == (None if act == "silu" else act)
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config


OPT = {"model_type": "opt", "hidden_size": 48, "ffn_dim": 100, "num_hidden_layers": 2, "num_attention_heads": 4,
       "vocab_size": 100, "max_position_embeddings": 64, "word_embed_proj_dim": 48, "do_layer_norm_before": True,
       "activation_function": "relu"}


@pytest.mark.parametrize("left_out", [[], ["word_embed_proj_dim", "do_layer_norm_before", "activation_function"]])
def test_opt(left_out: list[str]) -> None:
    """What older config.json files leave out is what all models but one have."""
    config = opt.Config.from_hf({name: value for name, value in OPT.items() if name not in left_out})
    assert (config.hidden_act, config.tie_word_embeddings, config.head_dim, config.intermediate_size) == (
        "relu", True, 12, 100)
    assert config.num_key_value_heads == 4 and not config.gated
    assert not config.rope_frequencies().any() and config.norm_epsilon == 1e-5
    assert opt.Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(("extra", "message"), [
    ({"do_layer_norm_before": False}, "do_layer_norm_before is false, as in OPT-350M"),
    ({"word_embed_proj_dim": 24}, "word_embed_proj_dim is 24 and hidden_size 48, as in OPT-350M"),
    ({"enable_bias": False}, "without biases"),
    ({"layer_norm_elementwise_affine": False}, "without weights in its norms"),
    ({"_remove_final_layer_norm": True}, "without a norm before the output head"),
    ({"activation_function": "gelu_10"},
     "activation 'gelu_10' is not known; known: silu, relu, relu2, gelu_tanh, gelu"),
    ({"activation_function": ["relu"]}, "activation"), ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"num_attention_heads": 5}, "hidden_size 48 is not a multiple of 5 attention heads"),
    ({"num_attention_heads": 16}, "head_dim is 3"), ({"ffn_dim": "100"}, "intermediate_size is '100'"),
])
def test_opt_refused(extra: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opt.Config.from_hf({**OPT, **extra})


@pytest.mark.parametrize("extra", [
    {"hidden_size": 0}, {"hidden_size": 1 << 30}, {"vocab_size": "100"}, {"num_key_value_heads": 3}, {"head_dim": 33},
    {"rms_norm_eps": float("nan")}, {"rope_theta": -1}, {"rope_scaling": {"rope_type": "yarn"}},
    {"hidden_act": "gelu_10"}, {"hidden_act": "fatrelu"}, {"hidden_act": None}, {"hidden_act": ["relu"]},
    {"mlp_bias": True}, {"attention_bias": True}, {"use_sliding_window": True},
])
def test_refused(extra: dict) -> None:
    with pytest.raises(ValueError):
        llama.Config.from_hf({**LLAMA3_2, **extra})


def test_missing() -> None:
    with pytest.raises(KeyError, match="hidden_size"):
        llama.Config.from_hf({name: value for name, value in LLAMA3_2.items() if name != "hidden_size"})
    with pytest.raises(KeyError, match=r"llama\.embedding_length"):
        llama.Config.from_gguf({"llama.attention.head_count": 4}, vocab_size=8, tie_word_embeddings=True)


@pytest.mark.parametrize("extra", [
    {"factor": 0.0}, {"factor": float("inf")}, {"factor": -8.0}, {"low_freq_factor": 4.0}, {"low_freq_factor": 5.0},
    {"low_freq_factor": 0.0}, {"high_freq_factor": float("nan")}, {"original_max_position_embeddings": 0},
    {"original_max_position_embeddings": 1 << 40},
])
def test_rope_scaling_refused(extra: dict) -> None:
    with pytest.raises(ValueError, match="rope scaling's"):
        llama.Config.from_hf({**LLAMA3_2, "rope_scaling": {**LLAMA3_ROPE, **extra}})


@pytest.mark.parametrize(("name", "value"), [
    ("hidden_size", True), ("hidden_size", 512.0), ("hidden_size", 10 ** 30), ("vocab_size", None),
    ("tie_word_embeddings", 1), ("tie_word_embeddings", "no"), ("rms_norm_eps", 1), ("rms_norm_eps", "1e-5"),
    ("rope_theta", float("inf")), ("rope_theta", 1e-300), ("rope_pairing", "both"), ("rope_pairing", ["half"]),
    ("rope_scaling", []), ("rope_scaling", {"factor": 8.0}), ("rope_scaling", {**LLAMA3_ROPE, "factor": 8.0}),
    ("rope_scaling", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": True}),
    ("rope_frequency_factors", [1.0] * 15), ("rope_frequency_factors", [1] * 16), ("rope_frequency_factors", "x" * 16),
    ("rope_frequency_factors", [0.0] * 16), ("rope_frequency_factors", [1e-20] * 16), ("rope_frequency_factors", 7),
    ("sliding_window", 8), ("hidden_act", "gelu_new"), ("hidden_act", 1), ("hidden_act", ["relu"]), ("hidden_act", {}),
])
def test_from_json_refused(name: str, value: object) -> None:
    """What a bundle's header can hold that `to_json` never gave."""
    values = llama.Config.from_hf(LLAMA3_2).to_json()
    with pytest.raises((TypeError, ValueError)):
        llama.Config.from_json({**values, name: value})
