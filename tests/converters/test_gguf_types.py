"""Every type that GGUF files have: read as the gguf library reads it, and what a bundle has of it."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from random_gguf import HALVES, HIDDEN, INNER, TYPES, VOCAB, random_tensor, shapes, write

from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.converters.gguf_source import open_gguf
from edgert.kernels.formats import FORMATS, unpack

TOPS = {Type.Q4_0: 15, Type.Q4_1: 15, Type.Q4_K: 15, Type.Q5_0: 31, Type.Q5_1: 31, Type.Q5_K: 31, Type.TQ1_0: 2,
        Type.TQ2_0: 3, Type.IQ1_S: 2, Type.IQ3_XXS: 15, Type.IQ3_S: 15, Type.MXFP4: 24}
"""The largest q of those that have a grid."""
BESIDE = {Type.IQ3_XXS: 2 / 8}
"""How far weights may be from the grid, in steps of it: 60 for 62."""


@pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.name)
def test_every_type(tmp_path: Path, type_: Type) -> None:
    source = open_gguf(write(tmp_path / "m.gguf", type_=type_, tied=False))
    tensor = source.tensors["model.layers.0.mlp.down_proj.weight"]
    expected = dequantize(random_tensor(type_, HIDDEN, INNER), type_)
    assert tensor.type_name == type_.name
    np.testing.assert_array_equal(tensor.read(0, HIDDEN), expected)
    np.testing.assert_array_equal(tensor.read(7, 40), expected[7:40])
    assert tensor.read(9, 9).shape == (0, INNER)
    assert source.tensors["lm_head.weight"].shape == (VOCAB, HIDDEN)
    norm = source.tensors["model.norm.weight"]
    np.testing.assert_array_equal(norm.read(3, 10), np.ones(7, dtype=np.float32))
    assert norm.grid(0, 4) is None
    with pytest.raises(IndexError):
        tensor.read(0, HIDDEN + 1)


@pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.name)
def test_grid(tmp_path: Path, type_: Type) -> None:
    """The values stand on the grid; those of a negative scale, which half the blocks have here, on the mirrored one."""
    tensor = open_gguf(write(tmp_path / "m.gguf", type_=type_)).tensors["model.layers.0.mlp.gate_proj.weight"]
    grid = tensor.grid(5, 50)
    if type_ not in TOPS:
        assert grid is None
        return
    assert grid is not None and grid.top == TOPS[type_]
    assert grid.scale.shape == grid.minimum.shape == (45, HIDDEN // 32)
    assert grid.scale.dtype == grid.minimum.dtype == np.float32
    assert (grid.scale >= 0).all()
    scale, minimum = np.repeat(grid.scale, 32, axis=1), np.repeat(grid.minimum, 32, axis=1)
    values = tensor.read(5, 50)
    with np.errstate(all="ignore"):
        q = np.where(scale > 0, np.round((values + minimum) / scale), 0).clip(0, grid.top)
    off = np.abs(q * scale - minimum - values)
    assert (off <= BESIDE.get(type_, 0) * scale + 1e-6 * np.abs(values).max()).all()


KEPT = {Type.Q4_0: 0.006, Type.Q4_1: 0.006, Type.Q4_K: 0.006, Type.Q5_0: 0.006, Type.Q5_1: 0.006, Type.Q5_K: 0.006,
        Type.TQ1_0: 0, Type.TQ2_0: 0, Type.IQ1_S: 0.005, Type.IQ3_S: 0.007, Type.IQ3_XXS: 0.03,
        Type.MXFP4: 0}
"""What converting to preset q4 changes in weights that stay on their grid, in parts of their root mean square: the
scale and minimum of 32 weights become 8 bits each. Ternary weights are kept to the bit."""
ROUNDED = {Type.Q2_K: 0.06, Type.Q3_K: 0.06, Type.IQ1_M: 0.06, Type.IQ2_XXS: 0.06, Type.IQ2_XS: 0.07,
           Type.IQ2_S: 0.07, Type.IQ4_NL: 0.07, Type.IQ4_XS: 0.07, Type.NVFP4: 0.08, Type.Q6_K: 0.02, Type.Q8_0: 0.02}
"""The same of those that have no grid."""


@pytest.mark.parametrize("type_", HALVES, ids=lambda type_: type_.name)
def test_what_a_bundle_has_of_every_type(tmp_path: Path, type_: Type) -> None:
    """Against the gguf library's own reading of the same bytes."""
    raw = {f"blk.0.{name}.weight": (random_tensor(type_, *shapes()[f"blk.0.{name}.weight"], seed, like_a_model=True),
                                    type_) for seed, name in enumerate(("attn_output", "attn_q"))}
    convert(str(write(tmp_path / "m.gguf", type_=Type.Q4_0, tensors=raw)), tmp_path / "m.edge", calibrate=False)
    with Bundle(tmp_path / "m.edge") as bundle:
        for gguf_name, name in (("attn_output", "o_proj"), ("attn_q", "q_proj")):
            tensor = bundle.header.tensors[f"model.layers.0.self_attn.{name}.weight"]
            form, section = FORMATS[tensor.format], np.frombuffer(bundle.read_section(tensor.section), np.uint8)
            tiles = section[tensor.offset:tensor.offset + tensor.length].reshape(-1, form.tile_bytes(HIDDEN))
            expected = dequantize(*raw[f"blk.0.{gguf_name}.weight"])
            off = np.sqrt(np.square(unpack(form, tiles) - expected).mean() / np.square(expected).mean())
            assert off <= {**KEPT, **ROUNDED}[type_]
            if type_ is Type.MXFP4:
                assert (unpack(form, tiles)[expected == 0] == 0).all()
