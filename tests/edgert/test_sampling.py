"""Choosing tokens: greedy, filters, penalties, seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import ModelError
from edgert.sampling import Sampler, Sampling, log_probabilities

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.06, 0.04], np.float32))


def drawn(count: int = 4000, recent: tuple[int, ...] = (), **settings: float) -> np.ndarray:
    """How often each token is chosen, as fractions."""
    sampler = Sampler(Sampling(seed=1, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **settings}))
    return np.bincount([sampler.choose(LOGITS, recent) for _ in range(count)], minlength=5) / count


def test_greedy_takes_the_likeliest_and_the_first_among_equals() -> None:
    assert Sampler(Sampling()).choose(LOGITS, []) == 0
    assert Sampler(Sampling()).choose(np.array([1, 3, 3], np.float32), []) == 1


def test_temperature_one_samples_the_distribution() -> None:
    np.testing.assert_allclose(drawn(20000), np.exp(LOGITS), atol=0.015)


def test_temperature_sharpens() -> None:
    expected = np.exp(LOGITS / 0.5) / np.exp(LOGITS / 0.5).sum()
    np.testing.assert_allclose(drawn(20000, temperature=0.5), expected, atol=0.015)


@pytest.mark.parametrize(("settings", "kept"), [
    ({"top_k": 2}, 2), ({"top_k": 1}, 1), ({"top_p": 0.5}, 1), ({"top_p": 0.76}, 3), ({"top_p": 0.0}, 1),
    ({"min_p": 0.2}, 3), ({"min_p": 1.0}, 1), ({"top_k": 4, "top_p": 0.93, "min_p": 0.05}, 3)])
def test_filters_keep_the_likeliest(settings: dict[str, float], kept: int) -> None:
    chances = drawn(**settings)
    assert (chances[:kept] > 0).all()
    assert (chances[kept:] == 0).all()


def test_repetition_penalty_spares_new_tokens() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.2], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=2.0))
    assert sampler.choose(logits, [0]) == 1
    assert sampler.choose(np.array([-1.0, -1.2], np.float32), [0]) == 1
    assert Sampler(Sampling(repetition_penalty=2.0, repetition_window=1)).choose(logits, [0, 3]) == 0
    np.testing.assert_array_equal(logits, np.array([2.0, 1.5, -1.0, -1.2], np.float32))


def test_a_seed_repeats_and_another_differs() -> None:
    def run(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.choose(LOGITS, []) for _ in range(50)]

    assert run(7) == run(7)
    assert run(7) != run(8)


@pytest.mark.parametrize("settings", [
    {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 1.1}, {"min_p": -1.0}, {"top_k": -1},
    {"repetition_penalty": 0.0}, {"seed": -1}, {"seed": 1 << 64}, {"temperature": "warm"}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ModelError, match=next(iter(settings))):
        Sampling(**settings)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=300), st.integers(0, 2 ** 32),
       st.floats(0.01, 5), st.integers(0, 400), st.floats(0, 1), st.floats(0, 1))
def test_any_logits_give_a_token(values: list[float], seed: int, temperature: float, top_k: int, top_p: float,
                                 min_p: float) -> None:
    sampler = Sampler(Sampling(temperature, top_k, top_p, min_p, seed=seed))
    assert 0 <= sampler.choose(np.array(values, np.float32), []) < len(values)


def test_log_probabilities() -> None:
    np.testing.assert_allclose(log_probabilities(LOGITS + 3), LOGITS, atol=1e-6)
    assert np.isfinite(log_probabilities(np.array([1e4, -1e4], np.float32))).all()
