"""Which matrices become 2:4 sparse weights, and what those keep."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_model import write_model

from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.converters.importance import Importance
from edgert.converters.quantizer import packed, quantize, ternary, two_of_four
from edgert.errors import SourceError
from edgert.kernels.formats import FORMATS, unpack

Q4N = FORMATS["q4n"]
GATE, UP, DOWN = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
QUERY = "model.layers.0.self_attn.q_proj.weight"


def pruned(seed: int, shape: tuple[int, int]) -> np.ndarray:
    random = np.random.default_rng(seed)
    kept = random.permuted(np.tile([True, True, False, False], (shape[0] * shape[1] // 4, 1)), axis=1).reshape(shape)
    return (random.standard_normal(shape) * kept).astype(np.float32)


def formats(folder: Path, names: list[str], preset: str = "q4") -> tuple[dict[str, str], list[str]]:
    """Of a model in which these matrices are 2:4 sparse: the format of each, and what was said."""
    write_model(folder, intermediate_size=64)
    tensors = load_file(folder / "model.safetensors")
    for name in names:
        tensors[name] = pruned(1, tensors[name].shape)
    save_file(tensors, folder / "model.safetensors")
    said: list[str] = []
    convert(str(folder), folder.with_suffix(".edge"), preset, calibrate=False, say=said.append)
    with Bundle(folder.with_suffix(".edge")) as bundle:
        n = bundle.header.neurons[0]
        return {name: t.format for name, t in bundle.header.tensors.items()} | {
            GATE: n.gate_up, UP: n.gate_up, DOWN: n.down}, said


def test_those_that_are(tmp_path: Path) -> None:
    found, said = formats(tmp_path / "m", [GATE, UP, QUERY])
    assert found[GATE] == found[QUERY] == "q4n" and found[DOWN] == "q6"
    assert "3 of 8 matrices are 2:4 sparse, and are packed so (q4n)" in said[0]


def test_gate_and_up_have_one_format(tmp_path: Path) -> None:
    found, said = formats(tmp_path / "m", [GATE])
    assert found[GATE] == "q4" and not said


@pytest.mark.parametrize("preset", ["q6", "q8", "f16"])
def test_more_bits_stay(tmp_path: Path, preset: str) -> None:
    found, said = formats(tmp_path / "m", [GATE, UP, DOWN, QUERY], preset)
    assert found[QUERY] == preset and not said


def test_columns_that_are_no_multiple_of_four() -> None:
    assert two_of_four(np.array([[1, 0, 2, 0, 3, 4]])) and not two_of_four(np.array([[1, 0, 2, 0, 3, 4, 5]]))


@pytest.mark.parametrize("calibrated", ["no", "squares", "moments"])
def test_zero_stays_zero_and_the_rest_is_near(calibrated: str) -> None:
    values, random = pruned(3, (64, 256)), np.random.default_rng(4)
    inputs = (random.standard_normal((500, 256)) @ random.standard_normal((256, 256))).astype(np.float32)
    moments = inputs.T @ inputs / 500
    known = {"no": None, "squares": np.diag(moments).copy(), "moments": moments}[calibrated]
    importance = None if known is None else Importance(known)
    back = unpack(Q4N, packed(Q4N, values, None, importance))
    assert not back[values == 0].any()
    assert np.sqrt(np.square(back - values)[values != 0].mean()) < 0.095
    if calibrated == "moments":
        plain = unpack(Q4N, packed(Q4N, values))
        assert np.square((back - values) @ inputs.T).mean() < 0.9 * np.square((plain - values) @ inputs.T).mean()


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1.0, 2e29])
def test_any_size(size: float) -> None:
    """Off by at most a step of what is largest in the block, and what scales on the row's grid make of it."""
    values = (size * pruned(5, (32, 128))).astype(np.float32)
    error = np.abs(unpack(Q4N, packed(Q4N, values)) - values).reshape(32, -1, 32).max(2)
    assert (error <= 0.25 * np.abs(values).reshape(32, -1, 32).max(2) + 1e-37).all()


def test_more_than_two_are_refused() -> None:
    with pytest.raises(SourceError, match="2:4 sparse that has four neighbouring weights of which more than two"):
        packed(Q4N, np.ones((16, 32), np.float32))


def test_ternary_is_kept_to_the_bit() -> None:
    """One scale a row of any float32, or one for every 32 columns or more that are float16."""
    form, random = FORMATS["ternary"], np.random.default_rng(6)
    q = random.integers(-1, 2, (48, 512)).astype(np.float32)
    for scale in (np.float32(0.7312345), random.random((48, 1)).astype(np.float32),
                  np.repeat(random.random((48, 2)).astype(np.float16), 256, 1).astype(np.float32)):
        np.testing.assert_array_equal(unpack(form, packed(form, q * scale)), q * scale)


def test_what_is_not_ternary() -> None:
    random = np.random.default_rng(6)
    q = random.integers(-1, 2, (16, 64)).astype(np.float32)
    assert ternary(q * np.repeat(random.random((16, 2)), 32, 1).astype(np.float32)) is None  # two of 24 bits in a row
    assert ternary(random.standard_normal((16, 64), np.float32)) is None
    assert ternary(np.full((16, 64), np.inf, np.float32)) is None
    with pytest.raises(SourceError, match="whose weights are not -d, 0 and d"):
        quantize(FORMATS["ternary"], 0.5 + random.random((16, 64)).astype(np.float32))
