"""Choosing the next token from logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgert.errors import ModelError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Filters apply in llama.cpp's order: repetition, top-k, top-p, min-p, temperature.

    temperature: 0 takes the most likely token (greedy). top_k: keep the k most likely, 0 for all. top_p: keep the most
    likely that together reach this probability (Holtzman et al. 2019). min_p: keep those at least this fraction as
    likely as the most likely. repetition_penalty: divides positive logits of recent tokens and multiplies negative ones
    (Keskar et al. 2019, "CTRL"); repetition_window: how many tokens are recent. seed: None for a new one each time.
    Raises ModelError for values outside their range.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0, 100), ("top_k", 0, 1 << 31), ("top_p", 0, 1), ("min_p", 0, 1),
                                ("repetition_penalty", 0.01, 100), ("repetition_window", 0, 1 << 31)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
                raise ModelError(f"{name} is {value!r}; it goes from {low} to {high}")
        if self.seed is not None and (not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 64):
            raise ModelError(f"seed is {self.seed!r}; it is a whole number from 0, below 2 to the power of 64")


class Sampler:
    """Chooses tokens one after another; the same seed makes the same choices."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: np.ndarray, recent: Sequence[int]) -> int:
        """The next token. logits: float32 of shape (vocab_size,), not changed. recent: the tokens so far."""
        s = self._sampling
        window = recent[-s.repetition_window:] if s.repetition_window else []
        if s.repetition_penalty != 1.0 and len(window):
            logits = logits.copy()
            seen = np.unique(np.asarray(window))
            values = logits[seen]
            logits[seen] = np.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
        if s.temperature == 0:
            return int(logits.argmax())
        kept = np.arange(len(logits))
        if 0 < s.top_k < len(logits):
            kept = np.argpartition(logits, -s.top_k)[-s.top_k:]
        # Most likely first, lower ids first among equals: the outcome must not depend on how a partition is made.
        kept = kept[np.lexsort((kept, -logits[kept]))]
        scores = logits[kept].astype(np.float64)
        if s.top_p < 1:
            chances = _softmax(scores)
            kept, scores = _first(kept, scores, int((np.cumsum(chances) < s.top_p).sum()) + 1)
        if s.min_p > 0:
            kept, scores = _first(kept, scores, int((scores - scores[0] >= math.log(s.min_p)).sum()))
        return int(self._random.choice(kept, p=_softmax(scores / s.temperature)))


def _first(kept: np.ndarray, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    return kept[:max(count, 1)], scores[:max(count, 1)]


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """log softmax in float64. logits: shape (..., vocab_size)."""
    scores = logits.astype(np.float64)
    scores -= scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))
