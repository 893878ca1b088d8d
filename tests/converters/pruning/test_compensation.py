"""SparseGPT and DSnoT lessen what pruning changes, as their papers have it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.converters.pruning.compensation import compensated
from edgert.converters.pruning.inputs import Inputs
from edgert.converters.pruning.patterns import Blocks, NOfM, Pattern, Unstructured
from edgert.converters.pruning.regrowing import mean_errors, regrown
from edgert.converters.pruning.weights import kept_of


def example(seed: int, columns: int = 192, mean: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and 600 inputs that go together."""
    random = np.random.default_rng(seed)
    causes = random.standard_normal((600, 24)) @ random.standard_normal((24, columns)) / 5
    sizes = np.exp(0.7 * random.standard_normal(columns))
    x = (causes + 0.4 * random.standard_normal((600, columns)) + mean) * sizes
    return random.standard_normal((48, columns)).astype(np.float32), x.astype(np.float32)


def published(w: np.ndarray, x: np.ndarray, amount: float, pattern: Pattern) -> np.ndarray:
    """SparseGPT as in Frantar & Alistarh 2023, algorithm 1 (IST-DASLab/sparsegpt), plainly, in float64."""
    w, hessian = w.astype(np.float64), x.T.astype(np.float64) @ x / len(x)
    hessian += 0.1 * np.diag(hessian).mean() * np.eye(len(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    for start in range(0, w.shape[1], 128):
        stop = min(start + 128, w.shape[1])
        gone = np.zeros(w.shape, bool)
        if isinstance(pattern, Unstructured):
            cost = w[:, start:stop] ** 2 / np.diag(upper)[start:stop] ** 2
            gone[:, start:stop] = cost <= np.sort(cost.flatten())[int(cost.size * amount) - 1]
        for j in range(start, stop):
            if isinstance(pattern, NOfM) and j % pattern.m == 0:
                some = slice(j, j + pattern.m)
                cost = w[:, some] ** 2 / np.diag(upper)[some] ** 2
                np.put_along_axis(gone, j + np.argsort(cost, 1)[:, :pattern.m - pattern.n], True, 1)
            error = np.where(gone[:, j], w[:, j], 0) / upper[j, j]
            w[:, j:] -= np.outer(error, upper[j, j:])
            w[gone[:, j], j] = 0
    return w


def error(w: np.ndarray, changed: np.ndarray, x: np.ndarray) -> float:
    """Mean square of what has changed in the products."""
    return float(np.square((changed.astype(np.float64) - w) @ x.T).mean())


@pytest.mark.parametrize("pattern", [Unstructured(), NOfM(2, 4), NOfM(4, 8)])
def test_as_published(pattern: Pattern) -> None:
    """The same weights are pruned, and the others become the same."""
    w, x = example(1)
    made, expected = compensated(w, Inputs(x).moments, 0.5, pattern), published(w, x, 0.5, pattern)
    assert np.count_nonzero((made == 0) != (expected == 0)) <= made.size // 1000
    assert error(expected, made, x) < 1e-3 * error(w, expected, x)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 20), pattern=st.sampled_from([Unstructured(), NOfM(2, 4), Blocks(1), Blocks(4)]),
       columns=st.sampled_from([96, 192, 200]))
def test_less_error_than_wanda(seed: int, pattern: Pattern, columns: int) -> None:
    w, x = example(seed, columns)
    made = compensated(w, Inputs(x).moments, 0.5, pattern)
    kept = kept_of("wanda", w, Inputs(x), 0.5, pattern)
    assert error(w, made, x) < 0.7 * error(w, w * kept, x)
    assert abs(np.count_nonzero(made == 0) - np.count_nonzero(~kept)) <= made.size / 30
    if isinstance(pattern, NOfM):
        assert (np.count_nonzero(made.reshape(-1, pattern.m), 1) <= pattern.n).all()
    if isinstance(pattern, Blocks):
        blocks = made.reshape(3, 16, -1, pattern.columns).transpose(0, 2, 1, 3).reshape(-1, 16 * pattern.columns)
        assert ((blocks != 0).all(1) == (blocks != 0).any(1)).all()


def test_what_makes_up_goes_to_other_inputs() -> None:
    """It is no fit to the tokens it was made with alone."""
    w, x = example(4)
    made = compensated(w, Inputs(x[:400]).moments, 0.5, Unstructured())
    kept = kept_of("wanda", w, Inputs(x[:400]), 0.5, Unstructured())
    assert error(w, made, x[400:]) < 0.8 * error(w, w * kept, x[400:])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 20), group=st.sampled_from([0, 4, 8]))
def test_exchanging_brings_means_back(seed: int, group: int) -> None:
    """Of no row the mean product is farther off than before, of most far less; as many weights are kept."""
    w, x = example(seed, mean=0.5)
    inputs, pattern = Inputs(x), NOfM(group // 2, group) if group else Unstructured()
    before = kept_of("wanda", w, inputs, 0.5, pattern)
    scores = np.abs(w) * inputs.norms
    after = regrown(w, before, scores, inputs.mean, inputs.variance, group)
    assert (after.reshape(-1, group or 192).sum(1) == before.reshape(-1, group or 192).sum(1)).all()
    was, now = (np.abs(mean_errors(w, kept, inputs.mean)) for kept in (before, after))
    assert (now <= was + 1e-9).all() and now.mean() < (0.7 if group else 0.3) * was.mean()
    assert (after == kept_of("dsnot", w, inputs, 0.5, pattern)).all() and (before != after).any()
