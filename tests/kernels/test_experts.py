"""Experts: the router's choice, and what experts make of tokens, alone and among others."""

import numpy as np
import pytest
import rig
from guarded import Buffer, floats
from hypothesis import given
from hypothesis import strategies as st
from weights_for import seeds

from edgert.kernels.expert_records import LEFT_OUT, Route
from edgert.kernels.records import Code
from edgert.kernels.team import Team


def routed(team: Team, logits: np.ndarray, per_token: int, *, normalized: bool, exact: bool = True, scale: float = 1.0,
           threshold: float = 0.0) -> tuple[np.ndarray, np.ndarray, bool]:
    """Each token's experts and their weights, and whether all was finite."""
    tokens, experts = logits.shape
    rows = floats(np.pad(logits, ((0, 0), (0, -experts % 16)), constant_values=77))
    chosen, weights = Buffer(1, 8 * tokens * per_token), Buffer(1, 4 * tokens * per_token)
    team.set(tokens=tokens)
    finite = rig.run(team, (Code.ROUTE, Route(rows.address, rows.stride, experts, per_token, int(normalized),
                                              chosen.address, weights.address, int(exact), rig.bits(scale),
                                              rig.bits(threshold))))
    for buffer in (rows, chosen, weights):
        buffer.check()
    return (chosen.view(np.int64)[0].reshape(tokens, per_token).copy(),
            weights.view(np.float32)[0].reshape(tokens, per_token).copy(), finite)


@rig.examples(20)
@given(seed=seeds, tokens=st.sampled_from([1, 2, 33]), experts=st.integers(1, 150), share=st.floats(0, 1),
       normalized=st.booleans(), ties=st.booleans())
def test_route(target: str, seed: int, tokens: int, experts: int, share: float, normalized: bool, ties: bool) -> None:
    """The largest, of equals the first, in ascending order; softmax over all, or over those, times a number."""
    rng, per_token = np.random.default_rng(seed), max(int(share * min(experts, 12)), 1)
    logits = (3 * rng.standard_normal((tokens, experts))).astype(np.float32)
    if ties:
        logits = np.round(logits)
    scale = 1.0 if seed % 2 else 0.25
    chosen, weights, finite = routed(rig.team(target, 3), logits, per_token, normalized=normalized, scale=scale)
    expected = np.sort(np.argsort(-logits, 1, kind="stable")[:, :per_token], 1)
    assert finite and np.array_equal(chosen, expected)
    shares = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    of = np.take_along_axis(shares, expected, 1)
    expected_weights = scale * of / (of if normalized else shares).sum(1, keepdims=True)
    assert np.allclose(weights, expected_weights, rtol=1e-6, atol=1e-12)


@rig.examples(30)
@given(seed=seeds, tokens=st.sampled_from([1, 2, 33]), experts=st.integers(1, 150), share=st.floats(0, 1),
       normalized=st.booleans(), ties=st.booleans(), of_even=st.floats(0.05, 3))
def test_experts_that_weigh_little_are_left_out(target: str, seed: int, tokens: int, experts: int, share: float,
                                                normalized: bool, ties: bool, of_even: float) -> None:
    """Those below the threshold, but not the first of those with the largest weight, also where all are below it. The
    others keep their weights, or add up to 1."""
    rng, per_token = np.random.default_rng(seed), max(int(share * min(experts, 12)), 1)
    logits = (3 * rng.standard_normal((tokens, experts))).astype(np.float32)
    if ties:
        logits = np.round(logits)
    threshold, team = min(of_even / per_token, 0.99), rig.team(target, 3)
    every, whole, _ = routed(team, logits, per_token, normalized=normalized)
    chosen, weights, finite = routed(team, logits, per_token, normalized=normalized, threshold=threshold)
    shares = np.exp(np.take_along_axis(logits.astype(np.float64), every, 1) - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    clear = np.abs(shares - threshold) > 1e-5  # the others may be on either side of it
    largest = np.take_along_axis(logits, every, 1).argmax(1)
    stays = shares >= threshold
    stays[np.arange(tokens), largest] = True
    assert finite and np.array_equal((chosen != LEFT_OUT)[clear], stays[clear])
    stays = chosen != LEFT_OUT
    assert stays[np.arange(tokens), largest].all() and np.array_equal(chosen[stays], every[stays])
    expected = np.where(stays, whole, 0)
    if normalized:
        expected /= expected.sum(1, keepdims=True)
        assert np.allclose(weights, expected, rtol=1e-5)
    else:
        assert np.array_equal(weights, expected)
    alone = routed(team, logits[:1].copy(), per_token, normalized=normalized, threshold=threshold)
    assert np.array_equal(alone[0], chosen[:1]) and np.array_equal(alone[1], weights[:1])


def test_equal_experts_at_the_threshold_and_below_it(target: str) -> None:
    """A quarter is not less than a quarter; of equals below it the first stays."""
    logits, team = np.zeros((2, 20), np.float32), rig.team(target, 1)
    for threshold, stay in ((0.25, [0, 1, 2, 3]), (0.26, [0, LEFT_OUT, LEFT_OUT, LEFT_OUT])):
        chosen, weights, _ = routed(team, logits, 4, normalized=True, threshold=threshold)
        assert chosen.tolist() == [stay] * 2 and weights.sum(1).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(target: str, wrong: float) -> None:
    """An error, but not of a guess; in any case there are as many experts as a token has."""
    logits = np.zeros((3, 20), np.float32)
    logits[1, 7] = wrong
    for exact in (True, False):
        chosen, _, finite = routed(rig.team(target, 2), logits, 4, normalized=True, exact=exact)
        assert finite != exact and np.array_equal(chosen, [[0, 1, 2, 3]] * 3)
