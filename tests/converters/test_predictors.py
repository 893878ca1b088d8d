"""Ways to guess which neurons matter, on a model whose neurons are known."""

from pathlib import Path

import numpy as np
import pytest
from tiny_model import give_tokenizer, write_model

import edgert
from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.converters.predictors import WAYS, compare, top
from edgert.errors import SourceError
from edgert.measuring.perplexity import score, windows

TEXT = "".join(chr(97 + n) for n in np.random.default_rng(0).integers(0, 26, 300))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = give_tokenizer(write_model(tmp_path_factory.mktemp("model") / "m", size=0.3, vocab_size=258,
                                        intermediate_size=96, num_hidden_layers=2, max_position_embeddings=256))
    convert(str(folder), folder / "m.edge", "q4", calibrate=False)
    return folder / "m.edge"


def test_top() -> None:
    assert top(np.array([[3, 1, 2, 4], [9, 8, 1, 2]]), 0.5).tolist() == [[True, False, False, True],
                                                                        [True, True, False, False]]
    assert top(np.array([[1, 2, 3]]), 0.01).sum() == 1


def test_with_all_neurons_it_is_the_model(bundle: Path) -> None:
    """Its perplexity is the engine's, and every way that computes all of it loses nothing."""
    with Bundle(bundle) as opened:
        result = compare(opened, {"text": TEXT}, (1.0,), None)
    with edgert.load(bundle, context=256, kv_type="f32") as model:
        (part,) = windows(model.tokenizer.encode(TEXT, add_bos=False), 256, None)

        def logits_of(part: list[int], first: int) -> list[np.ndarray]:
            model.reset()
            model.extend(part[:first])
            return [model.extend(part[at:at + 1], every=True) for at in range(first, len(part))]

        expected = score([part], logits_of).perplexity  # type: ignore[arg-type]
    assert result["dense"]["text"] == pytest.approx(expected, rel=0.01)
    for row in result["ways"]:
        assert row["loss"]["text"] == pytest.approx(0, abs=0.02), row
        assert (row["computed"] > 0.99 and row["recall"] in (None, 1.0)) or row["way"] in ("CATS", "CHESS")


def test_the_oracle_recalls_all_and_reads_least(bundle: Path) -> None:
    with Bundle(bundle) as opened:
        rows = {row["way"]: row for row in compare(opened, {"text": TEXT}, (0.25,), 256)["ways"]}
    assert list(rows) == list(WAYS)
    assert rows["oracle"]["recall"] == 1.0
    assert rows["base"]["recall"] > max(rows["CATS"]["recall"], rows["GRIFFIN"]["recall"])
    assert all(0.2 < row["computed"] < 0.35 for row in rows.values())
    assert rows["CATS"]["read"] > rows["oracle"]["read"] > rows["base"]["read"] > 0
    assert rows["base, refined"]["loss"]["text"] != rows["base"]["loss"]["text"]


def test_what_it_is_not_for(bundle: Path, tmp_path: Path) -> None:
    with Bundle(bundle) as opened, pytest.raises(SourceError, match=r"^short: has 40 tokens; .* give a longer text"):
        compare(opened, {"short": TEXT[:40]}, (0.5,), None)
    folder = give_tokenizer(write_model(tmp_path / "opt", model_type="opt", size=0.3, vocab_size=258))
    convert(str(folder), tmp_path / "opt.edge", "q4", calibrate=False)
    with Bundle(tmp_path / "opt.edge") as opened, pytest.raises(SourceError, match="take an ordinary one"):
        compare(opened, {"text": TEXT}, (0.5,), None)
