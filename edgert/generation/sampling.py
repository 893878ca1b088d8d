"""Sampling: choosing the next token from logits."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgert.errors import ModelError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Applied in llama.cpp's order: repetition penalty, top-k, top-p, min-p, temperature.

    temperature: divides the logits; 0 takes the most likely token (greedy). top_k: keep the k most likely tokens, 0 for
    all. top_p: keep the most likely tokens that together reach this probability (Holtzman et al. 2019). min_p: keep
    tokens at least this fraction as likely as the most likely one. repetition_penalty: divides positive logits of
    recent tokens and multiplies negative ones (Keskar et al. 2019, "CTRL"). repetition_window: how many of the last
    tokens are recent. seed: of the random numbers; None for a new one each time.
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
    """Chooses tokens one after another. The same seed and logits give the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: np.ndarray, recent: Sequence[int]) -> int:
        """Choose the next token. logits: float32 of shape (vocab_size,), not changed. recent: all tokens so far."""
        s = self._sampling
        window = recent[-s.repetition_window:] if s.repetition_window else []
        if s.repetition_penalty != 1.0 and len(window):
            logits = logits.copy()
            seen = np.unique(np.asarray(window))
            values = logits[seen]
            logits[seen] = np.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
        if s.temperature == 0:
            return int(logits.argmax())
        kept = _descending(logits, s.top_k or len(logits))
        if s.top_p < 1:
            kept = kept[:_place(kept, s.top_p) + 1]
        if s.min_p > 0:
            least = float(kept[0]) + math.log(s.min_p)
            kept = kept[:max(bisect_right(kept, -least, key=lambda logit: -float(logit)), 1)]
        return _token(logits, kept, _place(kept, self._random.random(), s.temperature))


# Logits are sorted without their token ids, which takes a hundredth of the time; the ids are looked up afterwards, the
# lowest first among equal logits. Sums over the vocabulary need float64, but only a block at a time is converted.

_BLOCK = 4096
_NOTHING = 100.0
"""Logits this far below the largest add less to the sum than float64 can hold: e^-100 each."""


def _descending(logits: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest logits, in descending order."""
    values = np.negative(logits)
    if count < len(values):
        values.partition(count - 1)
        values = values[:count]
    values.sort()
    return np.negative(values, out=values)


def _powers(logits: np.ndarray, largest: float, temperature: float) -> Iterator[np.ndarray]:
    """The numerators of the softmax in float64, block by block."""
    for start in range(0, len(logits), _BLOCK):
        yield np.exp((logits[start:start + _BLOCK].astype(np.float64) - largest) / temperature)


def _place(kept: np.ndarray, probability: float, temperature: float = 1.0) -> int:
    """The first index up to which the tokens' probabilities add up to `probability`. kept: logits, descending."""
    largest = float(kept[0])
    lowest = largest - _NOTHING * temperature
    kept = kept[:bisect_right(kept, -lowest, key=lambda logit: -float(logit))]
    sums = np.cumsum([powers.sum() for powers in _powers(kept, largest, temperature)])
    block = min(int(np.searchsorted(sums, probability * sums[-1])), len(sums) - 1)
    here = kept[block * _BLOCK:(block + 1) * _BLOCK]
    (powers,) = _powers(here, largest, temperature)
    before = sums[block - 1] if block else 0.0
    return block * _BLOCK + min(int(np.searchsorted(before + np.cumsum(powers), probability * sums[-1])), len(here) - 1)


def _token(logits: np.ndarray, kept: np.ndarray, place: int) -> int:
    """The token at an index of the descending order; among equal logits the lower id comes first."""
    first = bisect_left(kept, -kept[place], key=lambda logit: -logit)
    return int(np.flatnonzero(logits == kept[place])[place - first])


def log_sum_exp(logits: np.ndarray) -> float:
    """log(sum(exp(logits))), which subtracted from logits gives log-probabilities. logits: shape (vocab_size,)."""
    largest = float(logits.max())
    return largest + math.log(sum(float(powers.sum()) for powers in _powers(logits, largest, 1.0)))


def likeliest(logits: np.ndarray, count: int) -> np.ndarray:
    """The token ids of the `count` largest logits, in descending order, lower ids first among equals."""
    if count == 0:
        return np.zeros(0, np.intp)
    least = _descending(logits, count)[-1]
    ids = np.concatenate([np.flatnonzero(logits > least), np.flatnonzero(logits == least)])[:count]
    return ids[np.argsort(-logits[ids], kind="stable")]
