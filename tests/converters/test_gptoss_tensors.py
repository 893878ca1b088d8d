"""gpt-oss' experts in safetensors files, quantized as published, or not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.numpy import load_file, save_file

from edgert.converters.safetensors_source import open_safetensors
from edgert.errors import SourceError

GOLDEN = Path(__file__).parents[1] / "golden" / "models"


def folder_with(tmp_path: Path, changes: dict[str, np.ndarray], config: dict[str, object],
                name: str = "gptoss") -> Path:
    """A golden model with other tensors in the place of those that they are named after."""
    folder = tmp_path / "m"
    shutil.copytree(GOLDEN / name, folder)
    tensors = load_file(folder / "model.safetensors")
    for each in changes:
        tensors.pop(each.removesuffix("_blocks").removesuffix("_scales"), None)
    save_file(tensors | changes, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    return folder


def test_mxfp4_as_gguf_has_it(tmp_path: Path) -> None:
    """What the gguf library makes of the same codes: a file of that kind has the first and the last 16 of 32 weights in
    a byte's halves, these have neighbours."""
    rng, changes, expected = np.random.default_rng(0), {}, {}
    for part, rows, columns in (("gate_up_proj", 128, 32), ("down_proj", 32, 64)):
        blocks = rng.integers(0, 256, (4, rows, columns // 32, 16), np.uint8)
        scales = rng.integers(110, 140, (4, rows, columns // 32), np.uint8)
        name = f"model.layers.0.mlp.experts.{part}"
        changes |= {name + "_blocks": blocks, name + "_scales": scales}
        codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(-1, 32)
        theirs = np.concatenate([scales.reshape(-1, 1), codes[:, :16] | codes[:, 16:] << 4], 1)
        expected[part] = dequantize(theirs, GGMLQuantizationType.MXFP4).reshape(4, rows, columns)
    source = open_safetensors(folder_with(tmp_path, changes, {"quantization_config": {"quant_method": "mxfp4"}}))
    for part, values in (("gate", expected["gate_up_proj"][:, ::2]), ("up", expected["gate_up_proj"][:, 1::2]),
                         ("down", expected["down_proj"])):
        tensor = source.tensors[f"model.layers.0.mlp.experts.{part}_proj.weight"]
        whole = values.reshape(-1, values.shape[-1])
        assert tensor.type_name == "MXFP4" and np.array_equal(tensor.read(0, len(whole)), whole)
        assert np.array_equal(tensor.read(31, 77), whole[31:77]) and tensor.read(5, 5).shape == (0, whole.shape[1])
        grid = tensor.grid(31, 77)
        assert grid is not None and grid.top == 24
        steps = (whole[31:77].reshape(46, -1, 32) - grid.minimum[..., None]) / grid.scale[..., None]
        assert np.array_equal(steps, np.round(steps)) and steps.min() >= 0 and steps.max() <= grid.top


def test_quantized_otherwise(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="already quantized"):
        open_safetensors(folder_with(tmp_path / "a", {}, {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(SourceError, match="already quantized"):
        open_safetensors(folder_with(tmp_path / "b", {}, {"quantization_config": {"quant_method": "mxfp4"}}, "olmoe"))
    codes = {"model.layers.0.mlp.experts.down_proj_blocks": np.zeros((4, 32, 2, 16), np.uint8)}
    with pytest.raises(SourceError, match=r"experts.down_proj.weight is missing"):
        open_safetensors(folder_with(tmp_path / "c", codes, {}))
    with pytest.raises(SourceError, match="is of type U8"):
        open_safetensors(folder_with(tmp_path / "d", {"model.norm.weight_blocks": np.zeros(3, np.uint8)}, {}))


@pytest.mark.parametrize(("changes", "message"), [
    ({"swiglu_limit": 5.0}, "swiglu_limit is 5.0"), ({"attention_bias": False}, "attention_bias is False"),
    ({"intermediate_size": 40}, "intermediate_size is 40, expected a multiple of 32")])
def test_settings_that_are_not_known(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_safetensors(folder_with(tmp_path, {}, changes))
