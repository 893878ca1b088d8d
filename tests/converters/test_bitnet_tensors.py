"""BitNet's packed matrices: what transformers reads in them, kept to the bit in a bundle."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_engine import make_engine

from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.converters.open_source import open_source
from edgert.converters.presets import Preset
from edgert.engine.session import Session
from edgert.errors import SourceError

MODEL = Path(__file__).parents[1] / "golden" / "models" / "bitnet"
NAME = "model.layers.1.mlp.down_proj"
TOKENS = [(7 * n) % 250 for n in range(20)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The tiny model, in float32, which NumPy has."""
    folder = Path(shutil.copytree(MODEL, tmp_path / "model"))
    source, packed = open_source(str(MODEL)), dict[str, np.ndarray]()
    header = (MODEL / "model.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    for name, entry in json.loads(header[8:8 + length]).items():
        if name == "__metadata__":
            continue
        raw = np.frombuffer(header, np.uint8)[8 + length:][slice(*entry["data_offsets"])]
        if entry["dtype"] == "U8":
            packed[name] = raw.reshape(entry["shape"])
        else:
            packed[name] = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    assert packed[NAME + ".weight"].shape == (10, 52) and source.tensors[NAME + ".weight"].shape == (40, 52)
    save_file(packed, folder / "model.safetensors")
    return folder


def changed(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def configured(folder: Path, **settings: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps(values))


def test_the_packed_weights(model: Path) -> None:
    """As transformers' unpack_weights lays them out, any rows at a time."""
    tensors = load_file(model / "model.safetensors")
    packed, scale = tensors[NAME + ".weight"], tensors[NAME + ".weight_scale"][0]
    expected = (np.concatenate([packed >> 2 * i & 3 for i in range(4)]).astype(np.float32) - 1) * scale
    tensor = open_source(str(model)).tensors[NAME + ".weight"]
    assert set(np.unique(expected)) == {-scale, 0, scale}
    for start, stop in ((0, 40), (0, 0), (3, 5), (9, 31), (39, 40)):
        assert np.array_equal(tensor.read(start, stop), expected[start:stop])
        grid = tensor.grid(start, stop)
        assert grid is not None and grid.scale.shape == grid.minimum.shape == (stop - start, 2) and grid.top == 2
        assert (grid.scale == scale).all() and (grid.minimum == scale).all()
    with pytest.raises(IndexError):
        tensor.read(0, 41)


def test_a_class_that_divides_by_the_scale(model: Path) -> None:
    times = open_source(str(model)).tensors[NAME + ".weight"].read(0, 40)
    scale = np.abs(times).max()
    configured(model, linear_class="bitlinear")
    divided = open_source(str(model)).tensors[NAME + ".weight"].read(0, 40)
    assert np.allclose(divided, times / scale ** 2, rtol=1e-6) and not np.allclose(scale, 1, atol=0.1)


def test_a_bundle_has_the_same_weights(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 2 bits each, but for the matrix behind attention, whose padding must be 0; what differs from floats is that
    activations have 8 bits: 0.025 standard deviations, root mean square (0.011 was achieved)."""
    formats = Preset.formats
    monkeypatch.setattr(Preset, "formats", lambda preset, source: {
        name: form if form == "ternary" else "f32" for name, form in formats(preset, source).items()})
    made = []
    for preset in ("q4", "f32"):
        convert(str(model), tmp_path / "m.edge", preset)
        with Bundle(tmp_path / "m.edge") as bundle:
            ternary = {name for name, tensor in bundle.header.tensors.items() if tensor.format == "ternary"}
            assert len(ternary) == (12 if preset == "q4" else 0) and not bundle.header.neurons
            engine, session = make_engine(bundle, chunk=20), Session(bundle.header.config, 64, "f32")
            made.append(engine.forward(session, TOKENS, range(20)))
            session.close()
            engine.close()
    assert np.sqrt(np.square(made[0] - made[1]).mean()) < 0.025 * made[1].std()


def test_presets_that_measure(model: Path, tmp_path: Path) -> None:
    """What is ternary stays on its grid in 2 bits."""
    from tiny_model import give_tokenizer
    give_tokenizer(model)
    convert(str(model), tmp_path / "m.edge", "q3")
    with Bundle(tmp_path / "m.edge") as bundle:
        assert bundle.header.tensors[NAME + ".weight"].format == "ternary"


@pytest.mark.parametrize(("settings", "says"), [
    ({"quantization_mode": "online"}, "ternary only once they are loaded"),
    ({"use_rms_norm": True}, "norms before every matrix"), ({"linear_class": "other"}, "'other' is not known")])
def test_methods_that_are_not_known(model: Path, settings: dict[str, Any], says: str) -> None:
    configured(model, **settings)
    with pytest.raises(SourceError, match=says):
        open_source(str(model))


def test_damage(model: Path) -> None:
    def no_scale(tensors: dict[str, np.ndarray]) -> None:
        del tensors[NAME + ".weight_scale"]

    def zero(tensors: dict[str, np.ndarray]) -> None:
        tensors[NAME + ".weight_scale"] = np.zeros(1, np.float32)

    def three(tensors: dict[str, np.ndarray]) -> None:
        tensors[NAME + ".weight_scale"] = np.ones(1, np.float32)
        tensors[NAME + ".weight"] = np.full((10, 52), 0x55 | 3 << 4, np.uint8)

    changed(model, zero)
    configured(model, linear_class="bitlinear")
    with pytest.raises(SourceError, match=r"weight_scale is 0\.0, which makes no weights"):
        open_source(str(model))
    changed(model, three)
    tensor = open_source(str(model)).tensors[NAME + ".weight"]
    assert (tensor.read(0, 20) == 0).all()
    with pytest.raises(SourceError, match=r"down_proj\.weight has a weight that is not -1, 0 or 1"):
        tensor.read(0, 21)
    changed(model, no_scale)
    with pytest.raises(SourceError, match="no packed matrix with a weight_scale"):
        open_source(str(model))


def test_it_is_not_pruned(tmp_path: Path) -> None:
    for request in ("wanda:50%", "neurons:30%"):
        with pytest.raises(SourceError, match="bitnet: a model whose matrices of feed-forward parts"):
            convert(str(MODEL), tmp_path / "m.edge", prune=request)
