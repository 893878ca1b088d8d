"""How likely a guess is right, learned from the guesses before: those that were checked, by how sure they were."""

import math
from bisect import bisect_right
from collections.abc import Sequence

_PRIOR = 12.0
"""What is assumed at first counts as so many guesses of each kind, and as twice as many of all kinds together."""
_MEMORY = 200.0
"""Guesses of a kind that count, and of all kinds together; older ones fade."""


class Odds:
    """The share of right guesses, by a number that says how sure each was.

    bounds: ascending; they divide that number into len(bounds) + 1 kinds. assumed: the share of right ones of each,
    above 0 and below 1. Where guesses of all kinds together are right more or less often than was assumed of them, so
    are those of kinds that have hardly been seen: a small model's drafts are worse than a large one's.
    """

    def __init__(self, bounds: Sequence[float], assumed: Sequence[float]) -> None:
        assert len(assumed) == len(bounds) + 1
        self._bounds, self._assumed = bounds, assumed
        self._mean = sum(assumed) / len(assumed)
        self._seen, self._right = [0.0] * len(assumed), [0.0] * len(assumed)
        self._all = self._all_right = self._all_expected = 0.0
        """Of all kinds: how many, how many were right, and how many would have been, as was assumed."""

    def of(self, sure: float) -> float:
        """The probability that a guess is right."""
        kind = bisect_right(self._bounds, sure)
        shifted = _sigmoid(_logit(self._assumed[kind]) + self._shift)
        return (self._right[kind] + _PRIOR * shifted) / (self._seen[kind] + _PRIOR)

    @property
    def mean(self) -> float:
        """The same of any guess, as often as the kinds came."""
        return self._smoothed(self._all_right)

    def learn(self, sure: float, right: bool) -> None:
        """A guess was checked."""
        kind = bisect_right(self._bounds, sure)
        fade = min(_MEMORY / (self._seen[kind] + 1), 1)
        self._seen[kind] = (self._seen[kind] + 1) * fade
        self._right[kind] = (self._right[kind] + right) * fade
        fade = min(_MEMORY / (self._all + 1), 1)
        self._all = (self._all + 1) * fade
        self._all_right = (self._all_right + right) * fade
        self._all_expected = (self._all_expected + self._assumed[kind]) * fade

    @property
    def _shift(self) -> float:
        """How much more likely guesses of all kinds are right than was assumed, as a difference of logarithms of odds.
        """
        return _logit(self._smoothed(self._all_right)) - _logit(self._smoothed(self._all_expected))

    def _smoothed(self, count: float) -> float:
        return (count + 2 * _PRIOR * self._mean) / (self._all + 2 * _PRIOR)


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def draft_odds() -> Odds:
    """Of drafts, by the margin between the best and the second best choice, in units of logits. What is assumed was
    measured on Qwen2.5-Coder-1.5B with its neurons at 2 bits (docs/notes/speculation.md)."""
    return Odds((0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 9), (0.33, 0.42, 0.52, 0.65, 0.75, 0.82, 0.86, 0.95, 0.98, 0.99))


def lookup_odds() -> Odds:
    """Of what followed the last tokens before, by how many they were."""
    return Odds((3, 5, 9, 17), (0.3, 0.45, 0.6, 0.75, 0.85))


def sibling_odds() -> Odds:
    """Of a draft's second choice where the first was wrong, by its margin."""
    return Odds((1, 3), (0.5, 0.4, 0.3))
