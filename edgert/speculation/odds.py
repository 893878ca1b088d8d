"""How likely a guess is right, learned from the guesses before: those that were checked, by how sure they were."""

from bisect import bisect_right
from collections.abc import Sequence

_PRIOR = 12.0
"""What is assumed at first counts as so many guesses of each kind."""
_MEMORY = 200.0
"""Guesses of a kind that count; older ones fade."""


class Odds:
    """The share of right guesses, by a number that says how sure each was.

    bounds: ascending; they divide that number into len(bounds) + 1 kinds. assumed: the share of right ones of each.
    """

    def __init__(self, bounds: Sequence[float], assumed: Sequence[float]) -> None:
        assert len(assumed) == len(bounds) + 1
        self._bounds = bounds
        self._seen = [_PRIOR] * len(assumed)
        self._right = [_PRIOR * share for share in assumed]

    def of(self, sure: float) -> float:
        """The probability that a guess is right."""
        kind = bisect_right(self._bounds, sure)
        return self._right[kind] / self._seen[kind]

    @property
    def mean(self) -> float:
        """The same of any guess, as often as the kinds came."""
        return sum(self._right) / sum(self._seen)

    def learn(self, sure: float, right: bool) -> None:
        """A guess was checked."""
        kind = bisect_right(self._bounds, sure)
        fade = min(_MEMORY / (self._seen[kind] + 1), 1)
        self._seen[kind] = (self._seen[kind] + 1) * fade
        self._right[kind] = (self._right[kind] + right) * fade


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
