"""Sampling: choosing the next token from logits."""

import math
import secrets
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from edgert.errors import ModelError

from .noise import gumbel


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Applied in llama.cpp's order: logit bias, penalties, top-k, top-p, min-p,
    temperature.

    temperature: divides the logits; 0 takes the most likely token (greedy). top_k: keep the k most likely tokens, 0 for
    all. top_p: keep the most likely tokens that together reach this probability (Holtzman et al. 2019). min_p: keep
    tokens at least this fraction as likely as the most likely one. repetition_penalty: divides positive logits of
    recent tokens and multiplies negative ones (Keskar et al. 2019, "CTRL"). repetition_window: how many of the last
    tokens are recent. seed: of the random numbers; None for a new one each time. The following are OpenAI's:
    presence_penalty is subtracted from the logits of tokens that the answer has already, frequency_penalty as many
    times as it has them; logit_bias, by token id, is added to logits.
    Raises ModelError for values outside their range.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0, 100), ("top_k", 0, 1 << 31), ("top_p", 0, 1), ("min_p", 0, 1),
                                ("repetition_penalty", 0.01, 100), ("repetition_window", 0, 1 << 31),
                                ("presence_penalty", -2, 2), ("frequency_penalty", -2, 2)):
            _check(name, getattr(self, name), low, high)
        for token, bias in self.logit_bias.items():
            if not isinstance(token, int) or isinstance(token, bool) or token < 0:
                raise ModelError(f"logit_bias names {token!r}, which is no token id; ids are whole numbers from 0")
            _check(f"logit_bias of token {token}", bias, -100, 100)
        if self.seed is not None and (not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 64):
            raise ModelError(f"seed is {self.seed!r}; it is a whole number from 0, below 2 to the power of 64")


def _check(name: str, value: Any, low: float, high: float) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise ModelError(f"{name} is {value!r}; it goes from {low} to {high}")


class Choice(NamedTuple):
    """A chosen token.

    margin: how far its score is above the second best score of the tokens that are kept; inf where it is the only one,
    nan where nobody asked. Scores are logits after bias and penalties (greedy), or those over the temperature, with
    noise. second: the token with that score; -1 where there is none, or nobody asked.
    """

    token: int
    margin: float
    second: int = -1


class Sampler:
    """Chooses tokens. The same seed, position and logits give the same token, however often and in whatever order.

    With a temperature, the choice is the largest of logit / temperature + noise among the tokens that are kept, where
    the noise has a Gumbel distribution: this samples exactly what the softmax says (the Gumbel-max trick; Maddison,
    Tarlow and Minka 2014, "A* sampling"). The noise is a function of seed, position and token (`noise.py`), so a
    position has its token whether it is computed alone or together with guesses of what comes before it, and a guess
    that is sampled from similar logits with the same noise is likely to be the same token (Daliri, Musco and Suresh
    2024, "Coupling without communication and drafter-invariant speculative decoding").
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._seed = secrets.randbits(64) if sampling.seed is None else sampling.seed

    def choose(self, logits: np.ndarray, recent: Sequence[int], position: int, *, answer: Sequence[int] = (),
               allowed: np.ndarray | None = None, want_margin: bool = False) -> Choice:
        """Choose a token; of equal scores, the lowest id.

        logits: float32 of shape (vocab_size,), or of the first tokens of the vocabulary only; not changed. recent: all
        tokens before it, or the latest of them. position: how many tokens come before it, in prompt and answer. answer:
        those of them that are the answer's. allowed: the tokens that may be chosen, bool of shape (vocab_size,); one at
        least is among those of the logits. want_margin: False leaves the margin nan.
        """
        s = self._sampling
        logits = self._adjusted(logits, recent[-s.repetition_window:] if s.repetition_window else [], answer)
        if allowed is not None:
            logits = np.where(allowed[:len(logits)], logits, np.float32(-np.inf))
        if s.temperature == 0:
            token = int(logits.argmax())
            if not want_margin:
                return Choice(token, math.nan)
            second = _best_but(logits, token)
            return _choice(token, second, *(float(logits[i]) if i >= 0 else -math.inf for i in (token, second)))
        return self._with_noise(logits, _kept(logits, s), position, want_margin)

    def loss(self, token: int, chosen: int, logits: np.ndarray, recent: Sequence[int], position: int, *,
             answer: Sequence[int] = (), allowed: np.ndarray | None = None) -> float:
        """How much less likely than the choice another token is, in nats; inf for one that is not kept.

        chosen: what `choose` returned for the same. With a temperature their scores with noise are compared, as nats of
        logits: what is near there is a sample of nearly the same probabilities.
        """
        s = self._sampling
        if allowed is not None and not allowed[token]:
            return math.inf
        logits = self._adjusted(logits, recent[-s.repetition_window:] if s.repetition_window else [], answer)
        if s.temperature == 0:
            return float(logits[chosen]) - float(logits[token])
        if allowed is not None:
            logits = np.where(allowed[:len(logits)], logits, np.float32(-np.inf))
        if not np.isin(token, _kept(logits, s)):
            return math.inf
        ids = np.array([chosen, token])
        noise = gumbel(self._seed, position, ids)
        values = logits[ids].astype(np.float64) + s.temperature * noise
        return float(values[0] - values[1])

    def _adjusted(self, logits: np.ndarray, window: Sequence[int], answer: Sequence[int]) -> np.ndarray:
        """The logits after bias and penalties; a copy where there are any."""
        s = self._sampling
        repeats = s.repetition_penalty != 1.0 and len(window) > 0
        counts = (s.presence_penalty != 0 or s.frequency_penalty != 0) and len(answer) > 0
        if not (s.logit_bias or repeats or counts):
            return logits
        logits = logits.copy()
        for token, bias in s.logit_bias.items():
            if token < len(logits):
                logits[token] += bias
        if repeats:
            seen = np.unique(np.asarray(window))
            seen = seen[seen < len(logits)]
            values = logits[seen]
            logits[seen] = np.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
        if counts:
            seen, times = np.unique(np.asarray(answer), return_counts=True)
            here = seen < len(logits)
            logits[seen[here]] -= s.presence_penalty + s.frequency_penalty * times[here]
        return logits

    def _with_noise(self, logits: np.ndarray, kept: np.ndarray, position: int, want_margin: bool) -> Choice:
        """Choose one of the tokens that are kept: their ids, ascending."""
        largest = float(logits.max())
        token, best, second, second_score = int(kept[0]), -math.inf, -1, -math.inf
        for start in range(0, len(kept), _BLOCK):
            ids = kept[start:start + _BLOCK]
            with np.errstate(over="ignore"):  # next to a temperature of almost nothing
                scores = (logits[ids].astype(np.float64) - largest) / self._sampling.temperature
            scores += gumbel(self._seed, position, ids)
            place = int(scores.argmax())
            found = [(float(scores[place]), int(ids[place]))]
            if want_margin and (other := _best_but(scores, place)) >= 0:
                found.append((float(scores[other]), int(ids[other])))
            for score, of in found:
                if score > best:
                    if best > -math.inf:
                        second, second_score = token, best
                    token, best = of, score
                elif score > second_score and of != token:
                    second, second_score = of, score
        return _choice(token, second, best, second_score) if want_margin else Choice(token, math.nan)


def _choice(token: int, second: int, best: float, second_score: float) -> Choice:
    return Choice(token, 0.0 if best == second_score else best - second_score, second)  # inf - inf is nan


def _best_but(scores: np.ndarray, place: int) -> int:
    """The index of the largest score besides the one at an index; -1 if there is none above -inf."""
    before, after = scores[:place], scores[place + 1:]
    found = [start + int(part.argmax()) for part, start in ((before, 0), (after, place + 1)) if len(part)]
    best = max(found, key=lambda index: scores[index], default=-1)
    return best if best >= 0 and scores[best] > -np.inf else -1


def _kept(logits: np.ndarray, s: Sampling) -> np.ndarray:
    """The ids of the tokens that the filters keep, ascending; among equal logits the lower ids are kept first."""
    if s.top_k == 0 and s.top_p == 1 and s.min_p == 0:
        return np.arange(len(logits))
    descending = _descending(logits, s.top_k or len(logits))
    if s.top_p < 1:
        descending = descending[:_place(descending, s.top_p) + 1]
    if s.min_p > 0:
        least = float(descending[0]) + math.log(s.min_p)
        descending = descending[:max(bisect_right(descending, -least, key=lambda logit: -float(logit)), 1)]
    kept = logits > descending[-1]
    kept[np.flatnonzero(logits == descending[-1])[:len(descending) - np.count_nonzero(kept)]] = True
    return np.flatnonzero(kept)


# Logits are sorted without their token ids, which takes a hundredth of the time. Sums over the vocabulary need float64,
# but only a block at a time is converted.

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


def _powers(logits: np.ndarray, largest: float) -> Iterator[np.ndarray]:
    """The numerators of the softmax in float64, block by block."""
    for start in range(0, len(logits), _BLOCK):
        yield np.exp(logits[start:start + _BLOCK].astype(np.float64) - largest)


def _place(descending: np.ndarray, probability: float) -> int:
    """The first index up to which the tokens' probabilities add up to `probability`. descending: logits."""
    largest = float(descending[0])
    lowest = largest - _NOTHING
    descending = descending[:bisect_right(descending, -lowest, key=lambda logit: -float(logit))]
    sums = np.cumsum([powers.sum() for powers in _powers(descending, largest)])
    block = min(int(np.searchsorted(sums, probability * sums[-1])), len(sums) - 1)
    here = descending[block * _BLOCK:(block + 1) * _BLOCK]
    (powers,) = _powers(here, largest)
    before = sums[block - 1] if block else 0.0
    return block * _BLOCK + min(int(np.searchsorted(before + np.cumsum(powers), probability * sums[-1])), len(here) - 1)


def log_sum_exp(logits: np.ndarray) -> float:
    """log(sum(exp(logits))), which subtracted from logits gives log-probabilities. logits: shape (vocab_size,)."""
    largest = float(logits.max())
    return largest + math.log(sum(float(powers.sum()) for powers in _powers(logits, largest)))


def likeliest(logits: np.ndarray, count: int) -> np.ndarray:
    """The token ids of the `count` largest logits, in descending order, lower ids first among equals."""
    if count == 0:
        return np.zeros(0, np.intp)
    least = _descending(logits, count)[-1]
    ids = np.concatenate([np.flatnonzero(logits > least), np.flatnonzero(logits == least)])[:count]
    return ids[np.argsort(-logits[ids], kind="stable")]
