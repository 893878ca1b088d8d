"""Neurons and layers that are left out: the model is what transformers' would be without them, and truly smaller."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_model import give_tokenizer, write_model

import edgert
from edgert.bundle import Bundle
from edgert.converters.calibration import Calibration
from edgert.converters.calibration_text import shipped_windows
from edgert.converters.convert import convert
from edgert.converters.open_source import open_source
from edgert.converters.pruning.structure import without_layers, without_neurons
from edgert.converters.source import Source
from edgert.errors import SourceError

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "vocab_size": 300,
         "num_attention_heads": 4, "max_position_embeddings": 256}


def test_neurons_that_add_nothing(tmp_path: Path) -> None:
    """Of neurons some have tiny columns of the down projection: these go, and the logits stay."""
    model = give_tokenizer(write_model(tmp_path / "model", size=0.2, **SHAPE))  # type: ignore[arg-type]
    weights = load_file(model / "model.safetensors")
    weak = np.random.default_rng(3).permutation(96)[:32]
    for layer in range(4):
        weights[f"model.layers.{layer}.mlp.down_proj.weight"][:, weak] = 0
    save_file(weights, model / "model.safetensors")
    convert(str(model), tmp_path / "whole.edge", "f32")
    convert(str(model), tmp_path / "m.edge", "f32", prune="neurons:33%")
    with Bundle(tmp_path / "m.edge") as bundle:
        assert bundle.header.config.intermediate_size == 64
        assert bundle.header.quantization["pruning"]["method"] == "neurons"
    assert (tmp_path / "m.edge").stat().st_size < (tmp_path / "whole.edge").stat().st_size - 3 * 4 * 32 * 64 * 4
    found = []
    for name in ("whole", "m"):
        with edgert.load(tmp_path / f"{name}.edge", context=64) as loaded:
            found.append(loaded.score(list(range(2, 40))).logprobs[1:])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
    assert found[0].std() > 0.01


def test_which_neurons_stay(tmp_path: Path) -> None:
    """Those with the largest contributions, computed here from the activations of the first layer."""
    model = write_model(tmp_path / "model", **SHAPE)  # type: ignore[arg-type]
    source = open_source(str(model))
    windows = shipped_windows(source)
    assert windows is not None
    smaller = without_neurons(source, 1 / 3, windows, lambda *_: None)
    read = {spec.name: source.tensors[spec.name].read(0, spec.shape[0]) for spec in source.config.tensors()}
    x = _before_feed_forward(source, windows)
    gate, up, down = (read[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
    hidden = (x @ gate.T) / (1 + np.exp(-(x @ gate.T))) * (x @ up.T)
    worth = np.linalg.norm(hidden, axis=0) * np.linalg.norm(down, axis=0)
    kept = np.sort(np.argsort(-worth)[:64])
    for name, matrix in (("gate", gate), ("up", up)):
        made = smaller.tensors[f"model.layers.0.mlp.{name}_proj.weight"]
        assert made.shape == (64, 64) and (made.read(0, 64) == matrix[kept]).all()
    assert (smaller.tensors["model.layers.0.mlp.down_proj.weight"].read(0, 64) == down[:, kept]).all()


def _before_feed_forward(source: Source, windows: np.ndarray) -> np.ndarray:
    """What the first feed-forward part gets, by the calibration that is tested against transformers elsewhere."""
    seen: list[np.ndarray] = []

    class Seen(Calibration):
        def _observe(self, x: np.ndarray, names: Sequence[str], *, squares_alone: bool = False) -> None:
            if "model.layers.0.mlp.gate_proj.weight" in names:
                seen.append(x.astype(np.float64))

    calibration = Seen(source, windows, frozenset())
    while not seen:
        calibration.run()
    return seen[0]


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "olmo2"])
def test_layers_that_change_nothing(tmp_path: Path, family: str) -> None:
    """A layer that adds hardly anything goes, and the others move up."""
    model = write_model(tmp_path / "model", model_type=family, size=0.3, **SHAPE)  # type: ignore[arg-type]
    source = open_source(str(model))
    windows = shipped_windows(source)
    assert windows is not None
    idle = {"llama": ["model.layers.2.self_attn.o_proj", "model.layers.2.mlp.down_proj"],
            "gpt_neox": ["model.layers.2.self_attn.o_proj", "model.layers.2.mlp.down_proj"],
            "olmo2": ["model.layers.2.post_attention_layernorm", "model.layers.2.post_feedforward_layernorm"]}[family]
    stacked = load_file(model / "model.safetensors")
    for name in list(stacked):
        if any(name.startswith(prefix) for prefix in idle):
            stacked[name] = stacked[name] * np.float32(1e-3)
    save_file(stacked, model / "model.safetensors")
    source = open_source(str(model))
    smaller = without_layers(source, 0.25, windows, lambda *_: None)
    assert smaller.config.num_hidden_layers == 3
    assert set(smaller.tensors) == {spec.name for spec in smaller.config.tensors()}
    for spec in smaller.config.tensors():
        before = spec.name if spec.layer != 2 else spec.name.replace(".2.", ".3.", 1)
        made, expected = (of.read(0, spec.shape[0]) for of in (smaller.tensors[spec.name], source.tensors[before]))
        assert (made == expected).all()


def test_bundles_with_fewer_layers(tmp_path: Path) -> None:
    """The bundle is to the byte, but for its header, the one of a model that never had the layer."""
    model = write_model(tmp_path / "model", size=0.3, **SHAPE)  # type: ignore[arg-type]
    convert(str(model), tmp_path / "m.edge", "f16", prune="layers:50%")
    with Bundle(tmp_path / "m.edge") as bundle:
        assert bundle.header.config.num_hidden_layers == 2
        first = bundle.read_section("layers.1.neurons")
    weights = load_file(model / "model.safetensors")
    kept = {name.replace(".3.", ".1.", 1): value for name, value in weights.items()
            if ".1." not in name and ".2." not in name}
    config = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": 2}
    (model / "config.json").write_text(json.dumps(config))
    save_file(kept, model / "model.safetensors")
    convert(str(model), tmp_path / "less.edge", "f16")
    with Bundle(tmp_path / "less.edge") as bundle:
        assert first == bundle.read_section("layers.1.neurons")


@pytest.mark.parametrize(("prune", "sentence"), [
    ("neurons:10%", "of 96 neurons, pruned 32 at a time, 10% is none"), ("neurons:99%", "leaves none"),
    ("layers:10%", "10% of 4 layers is 0; at least one"), ("layers:80%", "at most 2, as the first and the last stay")])
def test_amounts(tmp_path: Path, prune: str, sentence: str) -> None:
    model = write_model(tmp_path / "model", **SHAPE)  # type: ignore[arg-type]
    with pytest.raises(SourceError) as raised:
        convert(str(model), tmp_path / "m.edge", prune=prune)
    assert sentence in str(raised.value)


def test_layers_that_take_turns(tmp_path: Path) -> None:
    golden = Path(__file__).parents[2] / "golden" / "models" / "gemma3"
    with pytest.raises(SourceError, match="take turns"):
        convert(str(golden), tmp_path / "m.edge", prune="layers:34%")
