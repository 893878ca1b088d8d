"""Mixtures of experts in GGUF files: what they compute is what llama.cpp computes with the same file."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from small_engine import make_engine
from tiny_experts_gguf import EXPERTS, VOCABULARY, write_gguf

from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.converters.gguf_source import open_gguf
from edgert.engine.session import Session
from edgert.errors import UnsupportedError

llama_cpp = pytest.importorskip("llama_cpp")


@pytest.mark.parametrize(("architecture", "family"), [("llama", "mixtral"), ("olmoe", "olmoe"),
                                                      ("qwen3moe", "qwen3moe"), ("qwen2moe", "qwen2moe"),
                                                      ("granitemoe", "granitemoe"), ("deepseek", "deepseek"),
                                                      ("gpt-oss", "gpt-oss")])
def test_logits_of_llama_cpp(tmp_path: Path, architecture: str, family: str) -> None:
    """In float32 but for its cache, which is of float16: within a root mean square of 2e-3 standard deviations (8e-4
    were achieved)."""
    path = write_gguf(tmp_path / "m.gguf", architecture)
    tokens = [int(token) for token in np.random.default_rng(1).integers(0, VOCABULARY, 40)]
    theirs = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    theirs.eval(tokens)
    expected = np.array(theirs.scores[:len(tokens)])
    theirs.close()
    convert(str(path), tmp_path / "m.edge", "f32")
    with Bundle(tmp_path / "m.edge") as bundle:
        assert (bundle.header.config.architecture, bundle.header.config.experts) == (family, EXPERTS)
        engine, session = make_engine(bundle, chunk=64), Session(bundle.header.config, 64, "f32")
        logits = engine.forward(session, tokens, range(len(tokens)))
        engine.close()
    assert np.sqrt(np.square(logits - expected).mean()) < 2e-3 * expected.std()


def test_grids_of_experts_are_kept(tmp_path: Path) -> None:
    """Weights that stand on 4-bit grids stand on the same ones in a bundle of 4 bits: as if they were float32 there."""
    path = write_gguf(tmp_path / "m.gguf", "llama", Type.Q4_0)
    source = open_gguf(path)
    tensor = source.tensors["model.layers.1.mlp.experts.down_proj.weight"]
    grid = tensor.grid(0, tensor.shape[0])
    assert grid is not None and grid.scale.shape == (tensor.shape[0], tensor.shape[1] // 32)
    every = []
    for preset in ("q4", "f32"):
        convert(str(path), tmp_path / f"{preset}.edge", preset)
        with Bundle(tmp_path / f"{preset}.edge") as bundle:
            engine, session = make_engine(bundle, chunk=64), Session(bundle.header.config, 64, "f32")
            every.append(engine.forward(session, range(40), range(40)))
            engine.close()
    assert np.sqrt(np.square(every[0] - every[1]).mean()) < 0.1 * every[1].std()


def test_a_mixture_of_a_family_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="architecture 'dots1' is not supported"):
        open_gguf(write_gguf(tmp_path / "m.gguf", "dots1"))
