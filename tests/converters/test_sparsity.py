"""A model that comes pruned is packed sparse, matrix by matrix, where that is smaller."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_engine import make_engine
from tiny_model import change_header, prune, write_model

from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.engine.session import Session
from edgert.errors import BundleError
from edgert.kernels.block_packing import weights_of
from edgert.kernels.formats import FORMATS

SHAPE = {"num_hidden_layers": 2, "intermediate_size": 200, "vocab_size": 300, "hidden_size": 96,
         "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": False}
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def test_what_was_zero_is_left_out(tmp_path: Path) -> None:
    folder, said = prune(write_model(tmp_path / "model", size=0.2, **SHAPE)), []
    convert(str(folder), tmp_path / "m.edge", say=said.append)
    source = load_file(folder / "model.safetensors")
    with Bundle(tmp_path / "m.edge") as bundle:
        header = bundle.header
        matrices = [spec for spec in header.config.tensors() if spec.is_matrix]
        assert said == [f"{tmp_path / 'm.edge'}: {len(matrices) - 1} of {len(matrices)} matrices are sparse in columns "
                        "of 16 rows, and are packed so (q4b)"]
        for n in header.neurons:
            assert FORMATS[n.gate_up].kind == FORMATS[n.down].kind == "q4b" and n.details is None
        for name, tensor in header.tensors.items():
            if tensor.format.startswith("q4b"):
                raw = np.frombuffer(bundle.read_section(tensor.section), np.uint8)
                tiles = raw[tensor.offset:tensor.offset + tensor.length].reshape(-1, FORMATS[tensor.format].room)
                found, wanted = weights_of(tiles, tensor.columns)[:tensor.rows, :tensor.columns], source[name]
                assert not found[wanted == 0].any()
                assert np.linalg.norm(found - wanted) < 0.15 * np.linalg.norm(wanted)
        assert "embed_tokens" not in " ".join(n for n, t in header.tensors.items() if t.format.startswith("q4b"))


def test_logits_are_near_those_of_floats(tmp_path: Path) -> None:
    folder = prune(write_model(tmp_path / "model", size=0.2, **SHAPE))
    found = []
    for preset in ("q4", "f32"):
        convert(str(folder), tmp_path / f"{preset}.edge", preset)
        with Bundle(tmp_path / f"{preset}.edge") as bundle:
            engine = make_engine(bundle)
            session = Session(engine.config, 32, "f32")
            found.append(engine.forward(session, TOKENS, range(len(TOKENS))).copy())
            session.close()
            engine.close()
    assert np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1] > 0.97


@pytest.mark.parametrize(("of", "gate_up", "down"), [
    ("down_proj", "q4", "q4b"), ("gate_proj up_proj", "q4b", "q"), ("gate_proj", "q4", "q"), ("none", "q4", "q")])
def test_only_what_is_sparse(tmp_path: Path, of: str, gate_up: str, down: str) -> None:
    """Gate and up have one format."""
    folder = prune(write_model(tmp_path / "model", **SHAPE), of=lambda name: any(part in name for part in of.split()))
    convert(str(folder), tmp_path / "m.edge", calibrate=False)
    with Bundle(tmp_path / "m.edge") as bundle:
        for n in bundle.header.neurons:
            assert n.gate_up.startswith(gate_up) and n.down.startswith(down) and ("b-" in n.down) == (down == "q4b")


def test_too_full_or_not_in_columns_stays_dense(tmp_path: Path) -> None:
    folder = prune(write_model(tmp_path / "model", **SHAPE), kept=0.95)
    convert(str(folder), tmp_path / "m.edge", calibrate=False)
    with Bundle(tmp_path / "m.edge") as bundle:
        assert not any("q4b" in t.format for t in bundle.header.tensors.values())


def test_sizes_that_do_not_fit_the_shape_are_refused(tmp_path: Path) -> None:
    folder = prune(write_model(tmp_path / "model", **SHAPE))
    convert(str(folder), tmp_path / "m.edge", calibrate=False)

    def opened(change: object) -> None:
        with Bundle(change_header(tmp_path / "m.edge", tmp_path / "forged.edge", change)):
            pass

    def of_neurons(part: str, form: str) -> object:
        return lambda values: values["neurons"][0].update({part: form})

    def of_tensor(name: str, form: str) -> object:
        return lambda values: values["tensors"][name].update({"format": form})

    for change in (of_neurons("gate_up", "q4b-88"), of_neurons("down", "q4b-40"), of_neurons("gate_up", "q4b"),
                   of_tensor("model.embed_tokens.weight", "q4b-400"), of_neurons("down", "q4b-8000"),
                   of_tensor("model.layers.0.self_attn.q_proj.weight", "q4b-88")):
        with pytest.raises(BundleError):
            opened(change)
