"""A bundle read back as numbers: the weights that were quantized, whole and as their base planes have them."""

from pathlib import Path

import numpy as np
import pytest
from tiny_model import give_tokenizer, write_model

from edgert.bundle import Bundle
from edgert.converters.bundle_source import BundleWeights
from edgert.converters.convert import convert
from edgert.converters.open_source import open_source
from edgert.errors import SourceError

STEPS = {"q4": 1 / 15, "q8": 1 / 254, "f16": 1e-3, "f32": 0.0}
"""The largest error of a weight, as a part of the range of the 32 around it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return give_tokenizer(write_model(tmp_path_factory.mktemp("model"), size=0.3, vocab_size=258))


@pytest.mark.parametrize("preset", list(STEPS))
def test_what_was_written_is_read_back(folder: Path, tmp_path: Path, preset: str) -> None:
    convert(str(folder), tmp_path / "m.edge", preset, calibrate=False)
    source = open_source(str(folder))
    with Bundle(tmp_path / "m.edge") as bundle:
        weights = BundleWeights(bundle)
        back = weights.source()
        for spec in source.config.tensors():
            expected = source.tensors[spec.name].read(0, spec.shape[0])
            found = back.tensors[spec.name].read(0, spec.shape[0])
            assert found.shape == expected.shape, spec.name
            step = 2 * STEPS[preset] * np.ptp(expected) if spec.is_matrix else 1e-6
            assert np.abs(found - expected).max() <= step, spec.name
            assert np.array_equal(back.tensors[spec.name].read(3, 9), found[3:9])


def test_bases_are_coarser(folder: Path, tmp_path: Path) -> None:
    """And read in the middle: their error is about that of 2 bits, and on average none."""
    convert(str(folder), tmp_path / "m.edge", "q4", calibrate=False)
    with Bundle(tmp_path / "m.edge") as bundle:
        weights = BundleWeights(bundle)
        for whole, base in zip(weights.read_layer(0), weights.read_layer(0, base=True), strict=True):
            assert whole is not None and base is not None
            error = base - whole
            assert 0.1 < error.std() / whole.std() < 0.6
            assert abs(error.mean()) < 0.05 * error.std()
            assert len(np.unique(np.round(base[0, :32], 6))) <= 4 < len(np.unique(np.round(whole[0, :32], 6)))


def test_a_sparse_model_is_refused(tmp_path: Path) -> None:
    folder = give_tokenizer(write_model(tmp_path / "relu", size=0.3, vocab_size=258, hidden_act="relu"))
    convert(str(folder), tmp_path / "m.edge", "q4", calibrate=False)
    with Bundle(tmp_path / "m.edge") as bundle, pytest.raises(SourceError, match="it is a sparse model"):
        BundleWeights(bundle)
