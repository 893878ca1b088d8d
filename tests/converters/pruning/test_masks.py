"""What is pruned: as torch and transformers find it, and in the pattern that was asked for."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.converters.open_source import open_source
from edgert.converters.pruning.inputs import Inputs
from edgert.converters.pruning.patterns import Blocks, NOfM, Pattern, Unstructured
from edgert.converters.pruning.pruning import pruned
from edgert.converters.pruning.request import prunable, requested
from edgert.converters.pruning.weights import kept_of
from edgert.converters.source import Source

GOLDEN = Path(__file__).parents[2] / "golden"
REQUESTS = ("wanda:50%", "wanda:50%:2:4", "magnitude:30%", "magnitude:50%:2:4")


def golden(name: str) -> tuple[Source, np.ndarray]:
    """A model, and tokens as one window."""
    with np.load(GOLDEN / f"logits-{name}.npz") as file:
        tokens = file["tokens"][None].astype(np.int64)
    return open_source(str(GOLDEN / "models" / name)), tokens


def weights_of(source: Source, request: str, windows: np.ndarray, folder: Path) -> dict[str, np.ndarray]:
    """The matrices of the pruned model by name."""
    with pruned(source, requested(request), windows, folder / "m.edge", lambda *_: None, print) as made:
        return {spec.name: made.source.tensors[spec.name].read(0, spec.shape[0]) for spec in prunable(source.config)}


@pytest.mark.parametrize("request_text", REQUESTS)
@pytest.mark.parametrize("name", ["llama3-tied", "qwen2", "gemma3"])
def test_as_in_transformers(name: str, request_text: str, tmp_path: Path) -> None:
    """All but a few weights whose scores are equal but for rounding."""
    source, windows = golden(name)
    found = weights_of(source, request_text, windows, tmp_path)
    different = total = 0
    with np.load(GOLDEN / f"pruned-{name}.npz") as file:
        for of, weights in found.items():
            before = source.tensors[of].read(0, len(weights))
            kept = np.unpackbits(file[f"{request_text}/{of.removesuffix('.weight')}"], axis=1,
                                 count=weights.shape[1]).astype(bool)
            different += np.count_nonzero((weights != 0) != (kept & (before != 0)))
            total += kept.size
            assert (weights[weights != 0] == before[weights != 0]).all()
    assert total > 20_000 and different <= total / 5000


patterns = st.one_of(st.just(Unstructured()), st.sampled_from([NOfM(2, 4), NOfM(4, 8), NOfM(1, 4), NOfM(3, 5)]),
                     st.builds(Blocks, st.sampled_from([1, 4, 8])))


def require(kept: np.ndarray, pattern: Pattern, amount: float) -> None:
    """That what is kept has the pattern; of rows, or rows of blocks, of 80 columns."""
    if isinstance(pattern, NOfM):
        assert (kept.reshape(-1, pattern.m).sum(1) == pattern.n).all()
    elif isinstance(pattern, Blocks):
        for start in range(0, len(kept), 16):
            blocks = kept[start:start + 16].reshape(-1, 80 // pattern.columns, pattern.columns).transpose(1, 0, 2)
            blocks = blocks.reshape(len(blocks), -1)
            assert (blocks.all(1) == blocks.any(1)).all()
            assert np.count_nonzero(~blocks.any(1)) == int(len(blocks) * amount)
    else:
        assert ((~kept).sum(1) == int(80 * amount)).all()


@settings(max_examples=60, deadline=None)
@given(pattern=patterns, amount=st.sampled_from([0.3, 0.5, 0.75]), rows=st.sampled_from([1, 16, 40]),
       seed=st.integers(0, 1 << 20), equal=st.booleans(), method=st.sampled_from(["wanda", "dsnot"]))
def test_patterns_hold(pattern: Pattern, amount: float, rows: int, seed: int, equal: bool, method: str) -> None:
    """In each row, whether weights differ or many are equal; and what is pruned is what matters least."""
    if method == "dsnot" and isinstance(pattern, Blocks):
        method = "wanda"
    random = np.random.default_rng(seed)
    weights = random.standard_normal((rows, 80)).astype(np.float32)
    if equal:
        weights = np.sign(weights) * (weights > 1)
    inputs = Inputs((random.standard_normal((50, 80)) * np.exp(random.standard_normal(80)) + 0.3).astype(np.float32))
    kept = kept_of(method, weights, inputs, amount, pattern)
    require(kept, pattern, amount)
    if method == "wanda" and isinstance(pattern, Unstructured):
        scores = np.abs(weights) * inputs.norms
        assert (np.where(kept, scores, np.inf).min(1) >= np.where(kept, 0, scores).max(1)).all()


def test_magnitude_compares_the_whole_matrix() -> None:
    """A row of small weights loses more."""
    random = np.random.default_rng(2)
    weights = random.standard_normal((32, 80)).astype(np.float32)
    weights[16:] /= 10
    kept = kept_of("magnitude", weights, None, 0.5, Unstructured())
    assert np.count_nonzero(kept) == kept.size // 2 and kept[:16].sum() > 5 * kept[16:].sum()
    blocks = kept_of("magnitude", weights, None, 0.5, Blocks(4))
    assert blocks[:16].all() and not blocks[16:].any()


def test_a_partial_tile() -> None:
    """40 rows are two tiles and a half: blocks begin at rows 0, 16 and 32."""
    weights = np.ones((40, 8), np.float32)
    weights[32:, :4] = 0.1
    kept = Blocks(4).kept(weights, 0.5, by_row=True)
    assert not kept[32:, :4].any() and kept[32:, 4:].all() and not kept[:32, :4].any()
