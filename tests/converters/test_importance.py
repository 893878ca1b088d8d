"""Rounding by importance: products with the inputs change less, and what the moments do not say is left alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.converters.importance import Importance
from edgert.converters.quantizer import packed, quantize
from edgert.kernels.formats import BLOCK, FORMATS, unpack

Q4 = FORMATS["q4"]


def inputs(random: np.random.Generator, columns: int, *, rank: int, spread: float) -> np.ndarray:
    """512 inputs with `rank` common causes; sizes of columns differ by exp(spread) standard deviations."""
    causes = random.standard_normal((512, rank)) @ random.standard_normal((rank, columns)) / rank ** 0.5
    sizes = np.exp(spread * random.standard_normal(columns))
    return ((causes + 0.3 * random.standard_normal((512, columns))) * sizes).astype(np.float32)


def moments(x: np.ndarray) -> np.ndarray:
    return x.T @ x / np.float32(len(x))


def product_error(values: np.ndarray, x: np.ndarray, importance: Importance | None) -> float:
    """Mean square of what rounding to 4 bits changes in the products with x."""
    restored = unpack(Q4, packed(Q4, values, None, importance))[:values.shape[0], :values.shape[1]]
    return float(np.square((restored - values).astype(np.float64) @ x.T).mean())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 30), columns=st.sampled_from([64, 100, 288]), rank=st.sampled_from([4, 16]),
       spread=st.sampled_from([0.0, 0.5, 1.5]))
def test_products_change_less(seed: int, columns: int, rank: int, spread: float) -> None:
    """Where inputs go together, errors make up for each other: at most half the error. Squares alone gain where columns
    differ, and otherwise lose no more than weighing small and large weights alike does."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((32, columns)).astype(np.float32)
    x = inputs(random, columns, rank=rank, spread=spread)
    plain = product_error(values, x, None)
    squares = product_error(values, x, Importance(np.diag(moments(x))))
    assert product_error(values, x, Importance(moments(x))) < 0.5 * plain
    assert squares < (0.9 if spread == 1.5 else 1.3) * plain


def test_inputs_not_calibrated_with() -> None:
    """The gain is there for other inputs of the same kind, too."""
    random = np.random.default_rng(5)
    values, x = random.standard_normal((64, 256)).astype(np.float32), inputs(random, 256, rank=16, spread=0.5)
    assert product_error(values, x[256:], Importance(moments(x[:256]))) < 0.5 * product_error(values, x[256:], None)


def test_what_stands_on_the_grid_stays() -> None:
    """Without errors there is nothing to make up for."""
    random = np.random.default_rng(6)
    x = inputs(random, 128, rank=8, spread=1)
    step, lowest = (random.random((32, 128 // BLOCK)).astype(np.float32) + 0.5 for _ in range(2))
    q = random.integers(0, 16, (32, 128))
    values = (q.reshape(32, -1, BLOCK) * step[..., None] - lowest[..., None]).reshape(32, 128).astype(np.float32)
    np.testing.assert_array_equal(Importance(moments(x)).round(values, step, lowest, 15), q)


def test_inputs_that_are_nothing_alike_are_rounded_to_nearest() -> None:
    """Moments of 0 off the diagonal: no weight makes up for another."""
    random = np.random.default_rng(8)
    values = random.standard_normal((32, 96)).astype(np.float32)
    squares = np.exp(random.standard_normal(96)).astype(np.float32)
    alone, together = (quantize(Q4, values, None, Importance(m)) for m in (squares, np.diag(squares)))
    np.testing.assert_array_equal(alone.q, together.q)


@pytest.mark.parametrize("moments", [np.zeros(64), np.zeros((64, 64)), np.full(64, np.inf), np.full((64, 64), np.nan)])
def test_moments_that_say_nothing(moments: np.ndarray) -> None:
    assert not Importance(moments.astype(np.float32)).usable


def test_a_column_that_was_never_used_counts_a_little() -> None:
    """It might be used by another text: its weights are still rounded within their block's range."""
    random = np.random.default_rng(9)
    x = inputs(random, 64, rank=8, spread=0)
    x[:, 5] = 0
    values = random.standard_normal((32, 64)).astype(np.float32)
    for importance in (Importance(moments(x)), Importance(np.diag(moments(x)))):
        restored = unpack(Q4, packed(Q4, values, None, importance))
        assert np.abs(restored - values)[:, 5].max() < 2.0
