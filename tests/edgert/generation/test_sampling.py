"""Choosing tokens: greedy, filters, penalties, seeds."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import ModelError
from edgert.generation import sampling as module
from edgert.generation.sampling import Sampler, Sampling, likeliest, log_sum_exp
from edgert.memory.plan import _LOGITS_COPIES

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
    probabilities = drawn(**settings)
    assert (probabilities[:kept] > 0).all()
    assert (probabilities[kept:] == 0).all()


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


def reference(logits: np.ndarray, sampling: Sampling, share: float) -> int:
    """All of it in float64 and with a full sort. share: from 0 to 1, where in the distribution the token is."""
    scores = logits.astype(np.float64)
    order = np.lexsort((np.arange(len(logits)), -scores))[:sampling.top_k or None]
    if sampling.top_p < 1:
        sums = np.cumsum(np.exp(scores[order] - scores[order[0]]))
        order = order[:int((sums / sums[-1] < sampling.top_p).sum()) + 1]
    if sampling.min_p > 0:
        order = order[scores[order] - scores[order[0]] >= np.log(sampling.min_p)]
    sums = np.cumsum(np.exp((scores[order] - scores[order[0]]) / sampling.temperature))
    return int(order[min(int((sums / sums[-1] < share).sum()), len(order) - 1)])


@pytest.mark.parametrize("block", [1, 7, 4096])
@given(st.integers(0, 2 ** 32), st.integers(1, 5000), st.sampled_from([0.01, 0.5, 1.0, 3.0, 100.0]),
       st.sampled_from([0, 1, 2, 40, 1000, 100_000]), st.sampled_from([0, 0.1, 0.5, 0.9, 0.95, 0.9999, 1]),
       st.sampled_from([0, 1e-30, 1e-4, 0.05, 0.5, 1]), st.sampled_from([0.0, 0.01, 3.0, 50.0]), st.booleans())
def test_every_setting_is_what_a_full_sort_gives(block: int, seed: int, size: int, temperature: float, top_k: int,
                                                 top_p: float, min_p: float, spread: float, ties: bool) -> None:
    source = np.random.default_rng(seed)
    logits = (source.standard_normal(size) * spread + 5).astype(np.float32)
    if ties:
        logits = logits.round()
    sampling = Sampling(temperature, top_k, top_p, min_p, seed=seed)
    sampler, shares = Sampler(sampling), np.random.default_rng(seed).random(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", max(block, size // 50))
        assert [sampler.choose(logits, []) for _ in shares] == [reference(logits, sampling, share) for share in shares]


def test_frequencies_are_the_probabilities() -> None:
    """Chi-square of 20 000 draws from 300 tokens, against the 99.9th percentile for 299 degrees of freedom."""
    logits = np.random.default_rng(5).standard_normal(300).astype(np.float32)
    sampler = Sampler(Sampling(2.0, top_k=0, top_p=1.0, min_p=0.0, seed=11))
    counts = np.bincount([sampler.choose(logits, []) for _ in range(20_000)], minlength=300)
    expected = np.exp(logits / 2.0) / np.exp(logits / 2.0).sum() * 20_000
    assert ((counts - expected) ** 2 / expected).sum() < 379


def test_of_equal_logits_top_k_keeps_the_lowest_ids() -> None:
    logits = np.zeros(1000, np.float32)
    sampler = Sampler(Sampling(1.0, top_k=3, top_p=1.0, min_p=0.0, seed=2))
    assert {sampler.choose(logits, []) for _ in range(50)} == {0, 1, 2}


VOCABULARY = 152_000
ROWS = {"spread": np.random.default_rng(3).standard_normal(VOCABULARY).astype(np.float32),
        "equal": np.zeros(VOCABULARY, np.float32)}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("settings", [
    {"top_k": 0, "top_p": 1.0, "min_p": 0.0}, {"top_k": 0, "min_p": 0.0}, {"top_k": 100_000, "top_p": 0.999},
    {"top_k": 40}, {"top_k": 0, "repetition_penalty": 1.1}], ids=str)
def test_choosing_keeps_to_the_memory_that_is_planned(row: str, settings: dict[str, float]) -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=0, **settings))  # type: ignore[arg-type]
    assert peak(lambda: sampler.choose(ROWS[row], range(64))) < (_LOGITS_COPIES - 1) * ROWS[row].nbytes


@pytest.mark.parametrize("row", ROWS)
def test_log_probabilities_keep_to_the_memory_that_is_planned(row: str) -> None:
    assert peak(lambda: log_sum_exp(ROWS[row])) < ROWS[row].nbytes
    assert peak(lambda: likeliest(ROWS[row], 20)) < (_LOGITS_COPIES - 1) * ROWS[row].nbytes


def peak(function: Callable[[], object]) -> int:
    """Bytes that a call takes at once."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_log_sum_exp() -> None:
    np.testing.assert_allclose(LOGITS - log_sum_exp(LOGITS), LOGITS, atol=1e-6)
    np.testing.assert_allclose(LOGITS + 3 - log_sum_exp(LOGITS + 3), LOGITS, atol=1e-6)
    assert log_sum_exp(np.array([1e4, -1e4], np.float32)) == 1e4
    row = ROWS["spread"].astype(np.float64)
    np.testing.assert_allclose(log_sum_exp(ROWS["spread"]), np.log(np.exp(row).sum()), rtol=1e-12)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.integers(0, 70))
def test_likeliest(values: list[int], count: int) -> None:
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    assert likeliest(np.array(values, np.float32), count).tolist() == expected
