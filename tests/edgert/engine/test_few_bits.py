"""Whole models in the formats of few bits: what their weights stand for, and the same answers at every budget."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_engine import make_engine, use_plan
from tiny_model import give_tokenizer, write_model

import edgert
from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.converters.presets import Preset
from edgert.converters.quantizer import packed
from edgert.engine.session import Session
from edgert.kernels.formats import FORMATS, unpack

SHAPE = {"hidden_size": 64, "intermediate_size": 328, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": 300, "tie_word_embeddings": False}
TOKENS = np.random.default_rng(2).integers(0, 300, 30).tolist()
FEW = ["q2", "q3", "ternary", "q4n"]


def pruned(values: np.ndarray) -> np.ndarray:
    """The two largest of every four."""
    quads = values.reshape(-1, 4)
    smallest = np.argsort(np.abs(quads), 1)[:, :2]
    kept = quads.copy()
    np.put_along_axis(kept, smallest, 0, 1)
    return kept.reshape(values.shape)


def as_format(name: str, values: np.ndarray) -> np.ndarray:
    """Weights that a format takes."""
    if name == "ternary":
        return np.sign(values) * (np.abs(values) > 0.1) * np.float32(0.2)
    return pruned(values) if name == "q4n" else values


class Made(NamedTuple):
    """A model in a format of few bits; what its weights stand for, as 32-bit floats; and what was said."""

    bundle: Path
    floats: Path
    said: list[str]


@pytest.fixture(scope="module", params=FEW)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    name, place = request.param, tmp_path_factory.mktemp("few")
    folder = give_tokenizer(write_model(place / "model", size=0.2, **SHAPE))
    of = {key: as_format(name, values) if values.ndim == 2 else values
          for key, values in load_file(folder / "model.safetensors").items()}
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        form = "q4" if name == "q4n" else name  # it is found by itself
        patched.setattr(Preset, "formats", lambda _, source: {
            spec.name: form for spec in source.config.tensors() if spec.is_matrix})
        save_file(of, folder / "model.safetensors")
        convert(str(folder), place / "m.edge", calibrate=False, say=said.append)
    save_file({key: unpack(FORMATS[name], packed(FORMATS[name], values))[:values.shape[0], :values.shape[1]].copy()
               if values.ndim == 2 else values for key, values in of.items()}, folder / "model.safetensors")
    convert(str(folder), place / "f.edge", "f32")
    yield Made(place / "m.edge", place / "f.edge", said)


def logits(path: Path, **options: Any) -> np.ndarray:
    with Bundle(path) as bundle:
        engine, session = make_engine(bundle, **options), Session(bundle.header.config, 40, "f32")
        found = [engine.forward(session, TOKENS[:17], range(17)), engine.forward(session, TOKENS[17:18]),
                 engine.forward(session, TOKENS[18:], range(12))]
        session.close()
        engine.close()
    return np.concatenate(found)


def test_every_matrix_is_in_the_format(made: Made, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["made"]
    with Bundle(made.bundle) as bundle:
        assert {t.format for t in bundle.header.tensors.values()} == {"vector", "headers", name}
        assert {(n.gate_up, n.down) for n in bundle.header.neurons} == {(name, name)}
        assert all((n.details is not None) == (name in ("q3", "q4n")) for n in bundle.header.neurons)
    assert len(made.said) == (name == "q4n")
    if made.said:
        assert "16 of 16 matrices are 2:4 sparse" in made.said[0]


def test_what_the_weights_stand_for(made: Made) -> None:
    """But for activations, which are rounded to 8 bits."""
    expected, found = logits(made.floats), logits(made.bundle)
    assert np.sqrt(np.square(found - expected).mean()) < 0.04 * expected.std()


@pytest.mark.parametrize("options", [
    {"threads": 1, "chunk": 17}, {"threads": 3, "chunk": 1}, {"keep": 0.5, "details": 0.1}, {"keep": 0.0},
    {"keep": 1.0, "details": 0.0, "attention": 0.3, "head": 0.2}], ids=str)
def test_the_same_logits(made: Made, options: dict[str, Any]) -> None:
    assert np.array_equal(logits(made.bundle, **options).view(np.int32), logits(made.bundle).view(np.int32))


@pytest.mark.parametrize("placement", [
    {"keep": 1.0, "details": 0.0, "attention": 1.0, "head": 1.0}, {"keep": 0.5, "details": 0.1}, {"keep": 0.0}],
                         ids=str)
def test_speculation_changes_nothing(made: Made, placement: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """What guesses is the base planes, where the format has some."""
    def answers(mode: str | int, **settings: float) -> list[Any]:
        use_plan(monkeypatch, made.bundle, chunk=17, rows=17, context=64, **settings)
        with edgert.load(made.bundle, threads=2, context=64, speculation=mode) as model:
            return [list(model.generate("Of rivers", max_tokens=24, ignore_eos=True, logprobs=3, **sampling))
                    for sampling in ({}, {"temperature": 0.9, "seed": 11, "top_k": 0})]

    assert answers(5, **placement) == answers("off", keep=1.0)
