"""Scoring: how likely a model finds each token of a given text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .sampling import likeliest, log_sum_exp


@dataclass(frozen=True)
class Scores:
    """Natural log-probabilities of a text's n tokens, each given all those before it, before any sampling setting.

    logprobs: float64 of shape (n,); NaN for the first token, and for others that were not asked for. top: for each
    position the most likely tokens there, most likely first, as (token id, log-probability); empty where logprobs is
    NaN. following: the same of the token after the last one, of which there is always one.
    """

    logprobs: np.ndarray
    top: list[list[tuple[int, float]]]
    following: list[tuple[int, float]]


@dataclass
class Scoring:
    """Adds up the scores of a text whose logits come a few positions at a time.

    tokens: of the whole text. top: how many of the most likely ones are wanted. start: the first token that is scored.
    """

    tokens: Sequence[int]
    top: int
    start: int
    _logprobs: list[float] = field(default_factory=list)
    _top: list[list[tuple[int, float]]] = field(default_factory=list)

    def add(self, logits: np.ndarray) -> None:
        """The logits after the next positions, from token `start - 1` on: float32 of shape (any, vocab_size)."""
        for row in logits:  # one by one: float64 of all would be large
            normalizer, at = log_sum_exp(row), self.start + len(self._top)
            last = at == len(self.tokens)
            if not last:
                self._logprobs.append(float(row[self.tokens[at]]) - normalizer)
            self._top.append([(int(index), float(row[index]) - normalizer)
                              for index in likeliest(row, max(self.top, 1) if last else self.top)])

    def scores(self) -> Scores:
        """When all have been added."""
        before = min(self.start, len(self.tokens))
        return Scores(np.array([math.nan] * before + self._logprobs),
                      [[] for _ in range(before)] + self._top[:-1], self._top[-1])
