"""Perplexity: how surprised a model is by a text.

Measured as llama.cpp does: the tokens are split into windows, each window is computed from an empty context, and its
second half is scored, where every token has at least half a window before it. If the model wants BOS, it is the first
token of each window.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgert.errors import ModelError
from edgert.generation.sampling import log_sum_exp

EveryLogits = Callable[[Sequence[int], int], Iterator[np.ndarray]]
"""From (window, first) to the logits of window[first:], in parts: float32 of shape (n, vocab_size)."""


@dataclass
class Score:
    """The score of a text.

    tokens: how many tokens were scored. loss: the sum of their negative log-likelihoods. choices: the most likely token
    at each of these positions.
    """

    tokens: int
    loss: float
    choices: list[int]

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss / self.tokens)


def windows(ids: Sequence[int], window: int, bos: int | None) -> list[list[int]]:
    """Split a text into windows; a shorter rest is left out. Raises ModelError for a text of fewer than four tokens."""
    if len(ids) < 4:
        raise ModelError(f"the text has {len(ids)} tokens; perplexity needs at least 4")
    window = min(window, len(ids))
    parts = [list(ids[start:start + window]) for start in range(0, len(ids) - window + 1, window)]
    return [[bos, *part[1:]] if bos is not None else part for part in parts]


def score(parts: Sequence[Sequence[int]], logits_of: EveryLogits,
          progress: Callable[[int, int], None] = lambda done, total: None) -> Score:
    """Score the second half of each window."""
    result = Score(0, 0.0, [])
    for number, part in enumerate(parts):
        at = len(part) // 2
        for logits in logits_of(part, at):
            targets: Any = part[at + 1:at + 1 + len(logits)]
            logits = logits[:len(targets)]
            for row, target in zip(logits, targets, strict=True):  # one by one: float64 of all would be large
                result.loss += log_sum_exp(row) - float(row[target])
            result.tokens += len(targets)
            result.choices += logits.argmax(-1).tolist()
            at += len(logits)
        progress(number + 1, len(parts))
    return result
