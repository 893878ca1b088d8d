"""What is learned of guesses: how often they are right, and what they take."""

import numpy as np
import pytest

from edgert.speculation.costs import STREAMED, Costs
from edgert.speculation.odds import Odds, draft_odds, lookup_odds


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.93, 1.0])
@pytest.mark.parametrize("assumed", [0.01, 0.99])
def test_odds_come_to_the_true_share(share: float, assumed: float) -> None:
    rng, odds = np.random.default_rng(1), Odds((1.0, 2.0), (assumed, 0.5, 0.5))
    for right in rng.random(3000) < share:
        odds.learn(0.5, bool(right))
    assert abs(odds.of(0.5) - share) < 0.1
    assert odds.of(1.5) == odds.of(9.0)
    assert (odds.of(1.5) > 0.5) == (share > assumed), "other kinds, which were not seen, go the same way"


def test_odds_as_assumed_stay() -> None:
    """Of each kind as many were right as was assumed: none of them moves."""
    odds = Odds((1.0,), (0.25, 0.75))
    for number in range(400):
        odds.learn(0.5, number % 4 == 0)
        odds.learn(1.5, number % 4 != 0)
    assert odds.of(0.5) == pytest.approx(0.25, abs=0.01) and odds.of(1.5) == pytest.approx(0.75, abs=0.01)
    assert odds.mean == pytest.approx(0.5, abs=0.01)


def test_a_model_whose_drafts_are_worse_is_known_soon() -> None:
    """After twenty guesses of middling kinds, also those that have not been seen are taken for less likely."""
    odds = draft_odds()
    for number in range(20):
        odds.learn(1.2 + number % 2, number % 5 == 0)
    assert odds.mean < 0.55 and odds.of(3.5) < 0.7 and odds.of(0.1) < 0.2


def test_odds_follow_a_change() -> None:
    odds = Odds((), (0.5,))
    for right in (True, False):
        for _ in range(1500):
            odds.learn(3.0, right)
        assert odds.of(0.0) == pytest.approx(float(right), abs=0.02)
        assert odds.mean == pytest.approx(odds.of(0.0), abs=0.06)


@pytest.mark.parametrize("odds", [draft_odds(), lookup_odds()])
def test_the_surer_the_likelier(odds: Odds) -> None:
    shares = [odds.of(sure) for sure in np.linspace(0, 30, 200)]
    assert shares == sorted(shares) and 0 < shares[0] < shares[-1] < 1
    assert shares[0] < odds.mean < shares[-1]
    assert odds.of(np.inf) == shares[-1]


def test_costs_of_checking_follow_what_was_measured() -> None:
    """A line through passes of several tokens; one token alone is measured for itself."""
    costs = Costs(STREAMED)
    assert not costs.known and costs.draft == 0
    costs.checked(1, 1.0)
    assert costs.known and costs.check(1) == 1.0 and costs.rate == pytest.approx(1.0)
    for _ in range(30):
        for tokens in (2, 5, 9, 17):
            costs.checked(tokens, 1 + 0.1 * tokens)
    for tokens in (2, 5, 9, 17):
        assert costs.check(tokens) == pytest.approx(1 + 0.1 * tokens, rel=0.15)
    assert costs.check(1) == 1.0
    assert all(costs.check(n + 1) >= costs.check(n) for n in range(2, 20)), "more tokens never cost less"


def test_the_rate_to_beat_is_the_better_one() -> None:
    costs = Costs(STREAMED)
    costs.checked(1, 0.5)
    costs.came(1, 2.0)
    assert costs.rate == pytest.approx(2.0)
    for _ in range(40):
        costs.came(4, 1.0)
    assert costs.rate == pytest.approx(4.0, rel=0.1)


def test_old_drafts_fade() -> None:
    costs = Costs(STREAMED)
    for seconds in (1.0, 0.01):
        for _ in range(60):
            costs.drafted(seconds)
        assert costs.draft == pytest.approx(seconds, rel=0.05)
