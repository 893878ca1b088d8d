"""Rotary frequencies: those of transformers (tests/golden/make_rope.py), from config.json and from GGUF metadata."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert.models import llama
from edgert.models.config import Config

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "rope.json").read_text())["cases"]
GGUF = {"block_count": 1, "context_length": 1024, "embedding_length": 96, "feed_forward_length": 64,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5}


def of_hf(case: dict[str, Any]) -> llama.Config:
    return llama.Config.from_hf({"rms_norm_eps": 1e-5, **case["config"]})


def of_gguf(theta: float = 10000.0, tensors: dict[str, tuple[float, ...]] | None = None,
            **rope: object) -> llama.Config:
    values = {**GGUF, "rope.freq_base": theta, **{f"rope.{name}": value for name, value in rope.items()}}
    return llama.Config.from_gguf({f"llama.{name}": value for name, value in values.items()}, vocab_size=50,
                                  tie_word_embeddings=True, rope_tensors=tensors or {})


def assert_turns(config: Config, case: dict[str, Any]) -> None:
    np.testing.assert_allclose(config.rope_frequencies(), case["frequencies"], rtol=5e-7)
    assert config.rope_attention_factor == pytest.approx(case["magnitude"], rel=1e-6)


@pytest.mark.parametrize("case", CASES, ids=[f"{case['name']}, {case['tokens']}" for case in CASES])
def test_as_transformers(case: dict[str, Any]) -> None:
    """Of a model as it was loaded, of its bundle, and where the settings are as transformers 5 writes them."""
    config = of_hf(case)
    assert_turns(config.for_context(case["tokens"]), case)
    kept = llama.Config.from_json(json.loads(json.dumps(config.to_json())))
    assert kept == config
    assert_turns(kept.for_context(case["tokens"]), case)
    values = dict(case["config"])
    values["rope_parameters"] = {**values.pop("rope_scaling"), "rope_theta": values.pop("rope_theta")}
    assert of_hf({"config": values}) == config


@pytest.mark.parametrize("case", [case for case in CASES if case["name"] in (
    "linear", "yarn", "yarn, other borders", "longrope")], ids=lambda case: case["name"])
def test_from_gguf(case: dict[str, Any]) -> None:
    """As llama.cpp's conversion writes it: of longrope divisors are tensors, and yarn's borders are whole pairs."""
    scaling, theta = case["config"]["rope_scaling"], case["config"]["rope_theta"]
    if scaling["rope_type"] == "longrope":
        factors = {f"rope_factors_{kind}.weight": tuple(scaling[f"{kind}_factor"]) for kind in ("short", "long")}
        made = of_gguf(theta, factors, **{"scaling.original_context_length": 256,
                                          "scaling.attn_factor": case["magnitude"]})
    else:
        keys = {"factor": "factor", "rope_type": "type", "original_max_position_embeddings": "original_context_length",
                "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
        made = of_gguf(theta, **{f"scaling.{keys[name]}": value for name, value in scaling.items() if name in keys})
    if scaling.get("truncate", True):
        assert_turns(made.for_context(case["tokens"]), case)
    else:
        case = {"config": {**case["config"], "rope_scaling": {**scaling, "truncate": True}}}
        assert made.rope_scaling == of_hf(case).rope_scaling


def test_gguf_without_a_type_is_linear() -> None:
    plain = of_gguf().rope_frequencies()
    for rope in ({"scaling.factor": 4.0}, {"scale_linear": 4.0}, {"scaling.factor": 4.0, "scaling.type": "linear"}):
        np.testing.assert_array_equal(of_gguf(**rope).rope_frequencies(), plain / 4)
    assert of_gguf(**{"scaling.factor": 4.0, "scaling.type": "none"}).rope_scaling is None


def test_magnitudes_of_gguf() -> None:
    """llama.cpp's yarn_attn_factor stands for the usual one, yarn_log_multiplier is mscale_all_dim, attn_factor comes
    on top (llama-context.cpp)."""
    yarn = {"scaling.type": "yarn", "scaling.factor": 16.0, "scaling.original_context_length": 64}
    usual = 0.1 * math.log(16) + 1
    for more, magnitude in (({}, usual), ({"scaling.yarn_log_multiplier": 1.0}, 1.0),
                            ({"scaling.yarn_log_multiplier": 0.5}, usual / (0.05 * math.log(16) + 1)),
                            ({"scaling.yarn_attn_factor": 0.7}, 0.7), ({"scaling.attn_factor": 2.0}, 2 * usual)):
        assert of_gguf(**yarn, **more).rope_attention_factor == pytest.approx(magnitude)


@pytest.mark.parametrize(("rope", "message"), [
    ({"rope_type": "dynamic", "factor": 2.0}, "rope scaling of type 'dynamic' is not known; known: default, linear"),
    ({"rope_type": "linear", "factor": 0.0}, "rope scaling's factor is 0.0"),
    ({"rope_type": "yarn", "factor": 2.0, "beta": 3}, "of type 'yarn' has a setting 'beta', which is not known"),
    ({"rope_type": "default", "mrope_section": [4, 4]}, "has a setting 'mrope_section'"),
    ({"rope_type": "longrope", "short_factor": [1.0] * 11, "long_factor": [1.0] * 11}, "has 11 factors, expected 12"),
    ({"rope_type": "longrope", "short_factor": [1.0] * 12, "long_factor": [1.0] * 11}, "has 11 numbers, expected 12"),
    ({"rope_type": "longrope", "short_factor": [1.0] * 12, "long_factor": [0.0] * 12}, "a number of rope scaling's"),
    ({"full_attention": {"rope_type": "default"}}, "differ by layer"),
    ({"rope_type": "default", "partial_rotary_factor": 0.5}, "over 12 of a head's 24 components are not known"),
])
def test_refused(rope: dict[str, Any], message: str) -> None:
    values = CASES[0]["config"]
    with pytest.raises(ValueError, match=message):
        of_hf({"config": {**values, "rope_scaling": rope}})


@pytest.mark.parametrize(("rope", "message"), [
    ({"scaling.type": "dynamic"}, "type 'dynamic' is not known"), ({"scaling.type": "longrope"}, "needs the tensors"),
    ({"scaling.attn_factor": 2.0}, "has an attn_factor of 2.0"), ({"dimension_count": 12}, "over 12 of a head's 24"),
])
def test_gguf_refused(rope: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of_gguf(**rope)
