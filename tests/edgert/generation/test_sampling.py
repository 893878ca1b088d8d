"""Choosing tokens: greedy, filters, penalties, seeds, margins."""

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import ModelError
from edgert.generation import sampling as module
from edgert.generation.noise import gumbel
from edgert.generation.sampling import Choice, Sampler, Sampling, likeliest, log_sum_exp
from edgert.memory.plan import _LOGITS_COPIES

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.06, 0.04], np.float32))


def drawn(count: int = 4000, recent: tuple[int, ...] = (), **settings: float) -> np.ndarray:
    """How often each token is chosen, as fractions."""
    sampler = Sampler(Sampling(seed=1, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **settings}))
    tokens = [sampler.choose(LOGITS, recent, position).token for position in range(count)]
    return np.bincount(tokens, minlength=5) / count


def greedy(logits: np.ndarray, recent: tuple[int, ...] = (), **settings: float) -> int:
    return Sampler(Sampling(**settings)).choose(logits, recent, 0).token  # type: ignore[arg-type]


def test_greedy_takes_the_likeliest_and_the_first_among_equals() -> None:
    assert greedy(LOGITS) == 0
    assert greedy(np.array([1, 3, 3], np.float32)) == 1


@pytest.mark.parametrize(("settings", "kept"), [
    ({"top_k": 2}, 2), ({"top_k": 1}, 1), ({"top_p": 0.5}, 1), ({"top_p": 0.76}, 3), ({"top_p": 0.0}, 1),
    ({"min_p": 0.2}, 3), ({"min_p": 1.0}, 1), ({"top_k": 4, "top_p": 0.93, "min_p": 0.05}, 3)])
def test_filters_keep_the_likeliest(settings: dict[str, float], kept: int) -> None:
    probabilities = drawn(**settings)
    assert (probabilities[:kept] > 0).all()
    assert (probabilities[kept:] == 0).all()


def test_repetition_penalty_spares_new_tokens() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.2], np.float32)
    assert greedy(logits, (0,), repetition_penalty=2.0) == 1
    assert greedy(np.array([-1.0, -1.2], np.float32), (0,), repetition_penalty=2.0) == 1
    assert greedy(logits, (0, 3), repetition_penalty=2.0, repetition_window=1) == 0
    np.testing.assert_array_equal(logits, np.array([2.0, 1.5, -1.0, -1.2], np.float32))


def test_penalties_count_what_the_answer_has() -> None:
    """As OpenAI defines them: logit - count * frequency_penalty - (count > 0) * presence_penalty."""
    logits = np.array([3.0, 2.0, 0.5], np.float32)
    for answer, presence, frequency, chosen in (
            ([], 2, 2, 0), ([0], 0.9, 0, 0), ([0], 1.1, 0, 1), ([0, 0, 0], 0.9, 0, 0), ([0], 0, 0.4, 0),
            ([0, 0], 0, 0.4, 0), ([0, 0, 0], 0, 0.4, 1), ([0, 0], 0.5, 0.4, 1), ([0, 0, 1, 1], 2, 0, 0),
            ([0, 0, 1, 1], 0, 1.5, 2), ([2], -2, -1, 2), ([7], 2, 2, 0)):
        sampler = Sampler(Sampling(presence_penalty=presence, frequency_penalty=frequency))
        assert sampler.choose(logits, [0, *answer], 0, answer=answer).token == chosen, (answer, presence, frequency)
    np.testing.assert_array_equal(logits, np.array([3.0, 2.0, 0.5], np.float32))


def test_a_bias_is_added_to_logits() -> None:
    assert greedy(LOGITS, logit_bias={4: 2.6}) == 4  # log(0.5 / 0.04) is 2.53
    assert greedy(LOGITS, logit_bias={4: 2.5}) == 0
    assert greedy(LOGITS, logit_bias={0: -100, 1: -100}) == 2
    assert greedy(LOGITS, logit_bias={90000: 100}) == 0
    shares = drawn(logit_bias={0: math.log(0.15 / 0.5)})
    np.testing.assert_allclose(shares, np.array([0.15, 0.25, 0.15, 0.06, 0.04]) / 0.65, atol=0.03)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_penalty_for_tokens_that_logits_do_not_reach(temperature: float) -> None:
    """Those of a draft are of the first tokens of the vocabulary only."""
    logits = np.array([2.0, 1.5], np.float32)
    sampler = Sampler(Sampling(temperature, repetition_penalty=1e2, seed=0, min_p=0.9))
    assert sampler.choose(logits, [0, 2, 90000], 0).token == 1
    assert sampler.choose(logits, [2, 90000], 0).token == 0


def test_a_seed_repeats_in_any_order_and_another_differs() -> None:
    def run(sampler: Sampler, positions: list[int]) -> dict[int, int]:
        return {position: sampler.choose(LOGITS, [], position).token for position in positions}

    positions = list(range(50))
    first = Sampler(Sampling(temperature=1.0, seed=7))
    expected = run(first, positions)
    assert run(first, positions[::-1]) == run(first, positions[::3] * 2 + positions) == expected
    assert run(Sampler(Sampling(temperature=1.0, seed=7)), positions[::-1]) == expected
    assert run(Sampler(Sampling(temperature=1.0, seed=8)), positions) != expected
    without = Sampler(Sampling(temperature=1.0))
    assert run(without, positions) == run(without, positions)
    assert run(without, positions) != run(Sampler(Sampling(temperature=1.0)), positions)


@pytest.mark.parametrize("settings", [
    {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 1.1}, {"min_p": -1.0}, {"top_k": -1},
    {"repetition_penalty": 0.0}, {"seed": -1}, {"seed": 1 << 64}, {"temperature": "warm"}, {"presence_penalty": 2.1},
    {"frequency_penalty": -2.1}, {"frequency_penalty": None}, {"logit_bias": {3: 101}}, {"logit_bias": {3: "much"}},
    {"logit_bias": {-1: 1.0}}, {"logit_bias": {"3": 1.0}}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ModelError, match=next(iter(settings))):
        Sampling(**settings)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=300), st.integers(0, 2 ** 32),
       st.floats(0.01, 5), st.integers(0, 400), st.floats(0, 1), st.floats(0, 1))
def test_any_logits_give_a_token(values: list[float], seed: int, temperature: float, top_k: int, top_p: float,
                                 min_p: float) -> None:
    sampler = Sampler(Sampling(temperature, top_k, top_p, min_p, seed=seed))
    logits = np.array(values, np.float32)
    assert 0 <= sampler.choose(logits, range(len(values)), seed).token < len(values)
    np.testing.assert_array_equal(logits, np.array(values, np.float32))


def reference(logits: np.ndarray, sampling: Sampling, position: int) -> Choice:
    """All of it in float64 and with full sorts."""
    scores = logits.astype(np.float64)
    order = np.lexsort((np.arange(len(logits)), -scores))[:sampling.top_k or None]
    if sampling.top_p < 1:
        sums = np.cumsum(np.exp(scores[order] - scores[order[0]]))
        order = order[:int((sums / sums[-1] < sampling.top_p).sum()) + 1]
    if sampling.min_p > 0:
        order = order[scores[order] - scores[order[0]] >= np.log(sampling.min_p)]
    if sampling.temperature > 0:
        assert sampling.seed is not None
        scores = scores / sampling.temperature + gumbel(sampling.seed, position, np.arange(len(logits)))
    else:
        order = np.arange(len(logits))
    ranked = sorted(order, key=lambda token: (-scores[token], token))
    return Choice(int(ranked[0]), scores[ranked[0]] - scores[ranked[1]] if len(ranked) > 1 else math.inf)


@pytest.mark.parametrize("block", [1, 7, 4096])
@given(st.integers(0, 2 ** 32), st.integers(1, 5000), st.sampled_from([0, 0.01, 0.5, 1.0, 3.0, 100.0]),
       st.sampled_from([0, 1, 2, 40, 1000, 100_000]), st.sampled_from([0, 0.1, 0.5, 0.9, 0.95, 0.9999, 1]),
       st.sampled_from([0, 1e-30, 1e-4, 0.05, 0.5, 1]), st.sampled_from([0.0, 0.01, 3.0, 50.0]), st.booleans())
def test_every_setting_is_what_a_full_sort_gives(block: int, seed: int, size: int, temperature: float, top_k: int,
                                                 top_p: float, min_p: float, spread: float, ties: bool) -> None:
    source = np.random.default_rng(seed)
    logits = (source.standard_normal(size) * spread + 5).astype(np.float32)
    if ties:
        logits = logits.round()
    sampling = Sampling(temperature, top_k, top_p, min_p, seed=seed)
    sampler = Sampler(sampling)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", max(block, size // 50))
        for position in range(4):
            expected = reference(logits, sampling, position)
            choice = sampler.choose(logits, [], position, want_margin=True)
            assert choice.token == expected.token
            np.testing.assert_allclose(choice.margin, expected.margin, rtol=1e-9, atol=1e-9)
            unasked = sampler.choose(logits, [], position)
            assert unasked.token == choice.token
            assert math.isnan(unasked.margin)


def margin(values: list[float], **settings: float) -> float:
    sampler = Sampler(Sampling(**{"top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 4, **settings}))
    return sampler.choose(np.array(values, np.float32), [0], 3, want_margin=True).margin


@given(st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40), st.integers(0, 2 ** 63), st.data())
def test_what_another_token_would_cost(values: list[float], seed: int, data: st.DataObject) -> None:
    """Greedy: the difference of logits. With a temperature: of logits with noise times the temperature."""
    logits = np.array(values, np.float32)
    temperature = data.draw(st.sampled_from([0.0, 0.3, 1.0, 2.0]))
    sampling = Sampling(temperature=temperature, top_k=data.draw(st.integers(0, 5)), top_p=1, min_p=0, seed=seed)
    sampler, token = Sampler(sampling), data.draw(st.integers(0, len(values) - 1))
    chosen = sampler.choose(logits, [], 7).token
    cost = sampler.loss(token, chosen, logits, [], 7)
    scores = logits.astype(np.float64)
    if temperature:
        scores = scores + temperature * gumbel(seed, 7, np.arange(len(values)))
        kept = np.argsort(-logits, kind="stable")[:sampling.top_k or len(values)]
        if token not in kept:
            assert cost == math.inf
            return
    assert cost == pytest.approx(scores[chosen] - scores[token], abs=1e-9) and cost >= 0
    assert sampler.loss(chosen, chosen, logits, [], 7) == 0
    assert sampler.loss(token, chosen, logits, [], 7, allowed=np.arange(len(values)) != token) == math.inf


def test_margins_at_the_edges() -> None:
    assert margin([2.0, 5.0, 4.5]) == 0.5
    assert margin([6.0, 5.0, 4.5], repetition_penalty=2.0) == 0.5
    assert margin([5.0, 5.0]) == 0
    assert margin([5.0]) == margin([5.0], temperature=1.0) == math.inf
    assert margin([5.0, 4.0, 3.0], temperature=1.0, top_k=1) == math.inf
    assert margin([5.0, -math.inf]) == margin([5.0, -math.inf], temperature=1.0) == math.inf
    assert margin([-math.inf, -math.inf]) == 0
    assert margin([5.0, 3.0], temperature=1e-310) == math.inf


@pytest.mark.parametrize("settings", [{"top_k": 0, "min_p": 0.0, "top_p": 1.0}, {"min_p": 0.0}, {"top_k": 4}], ids=str)
def test_what_is_impossible_is_never_chosen(settings: dict[str, float]) -> None:
    logits = np.full(1000, -np.inf, np.float32)
    logits[[3, 700]] = 1.0
    sampler = Sampler(Sampling(100.0, seed=2, **settings))  # type: ignore[arg-type]
    assert {sampler.choose(logits, [], position).token for position in range(50)} == {3, 700}


def test_of_equal_logits_top_k_keeps_the_lowest_ids() -> None:
    logits = np.zeros(1000, np.float32)
    sampler = Sampler(Sampling(1.0, top_k=3, top_p=1.0, min_p=0.0, seed=2))
    assert {sampler.choose(logits, [], position).token for position in range(50)} == {0, 1, 2}


VOCABULARY = 152_000
ROWS = {"spread": np.random.default_rng(3).standard_normal(VOCABULARY).astype(np.float32),
        "equal": np.zeros(VOCABULARY, np.float32)}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("settings", [
    {"top_k": 0, "top_p": 1.0, "min_p": 0.0}, {"top_k": 0, "min_p": 0.0}, {"top_k": 100_000, "top_p": 0.999},
    {"top_k": 40}, {"top_k": 0, "repetition_penalty": 1.1},
    {"top_k": 0, "presence_penalty": 1, "logit_bias": {3: -5}}], ids=str)
def test_choosing_keeps_to_the_memory_that_is_planned(row: str, settings: dict[str, float]) -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=0, **settings))  # type: ignore[arg-type]
    most = (_LOGITS_COPIES - 1) * ROWS[row].nbytes
    assert peak(lambda: sampler.choose(ROWS[row], range(64), 0, answer=range(64), want_margin=True)) < most


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
