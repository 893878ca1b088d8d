"""What it costs to leave out experts that weigh little: a curve, measured while a mixture of experts is calibrated.

A part of the calibration text goes through the model again for each of some thresholds, in the same pass: each weight
is read once for all. At the end stands the Kullback-Leibler divergence of what the model then says of the next token
from what it says with all of its experts. It takes few tokens (docs/notes/presets.md), and is what `max_loss` counts:
nats of likelihood a token.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from edgert.bundle.header import MOST_NATS, ExpertLoss
from edgert.models.config import Config as AnyConfig
from edgert.models.expert_config import Config

from .ordering import misses

_OF_EVEN = (0.2, 0.4, 0.6, 0.8, 1.0, 1.25)
"""Thresholds, in parts of what each expert of a token would weigh if all weighed the same. Below the first hardly any
expert is left out, at the last most are; what a token's experts weigh is as uneven with 2 of them as with 8."""
_PLACES = 4
"""The text that is measured with is the beginnings of so many windows, from all over the text, as prose is not like
code."""
_QUARTERS = 4
CURVE_BYTES = 64 * len(_OF_EVEN)
"""At most so many are a curve's in a header."""


def thresholds_of(config: AnyConfig) -> list[float]:
    """Those that are tried, ascending; none where there is nothing to leave out."""
    if config.experts_per_token < 2:
        return []
    return [round(part / config.experts_per_token, 4) for part in _OF_EVEN]


class Trials:
    """Rows of activations that follow those of the text: of a part of it, as it is, and then with each threshold.

    What is seen of each stands in activations of the calibration, so that it goes on with them.
    """

    def __init__(self, thresholds: Sequence[float], windows: np.ndarray, make: Callable[[], Any]) -> None:
        """windows: of the text. make(): makes an activation, which has `values`."""
        self._thresholds, self.observed = list(thresholds), windows.size
        """The second: rows of the text."""
        self.windows = windows
        """All token ids."""
        if thresholds:
            some = np.tile(measuring_window(windows), (1 + len(thresholds), 1))
            self.windows = np.concatenate([windows, some])
            self._seen, self._losses = make(), make()
            self._seen.values = np.zeros((2, 1 + len(thresholds)))
            """Over all layers so far: how many experts a token has, and what is missed of them."""
        self._layers = 0

    def __bool__(self) -> bool:
        return bool(self._thresholds)

    def routing(self) -> Callable[[np.ndarray, Config], tuple[np.ndarray, np.ndarray]]:
        """What a layer's experts are chosen with: from logits as `routed` does, each row with its threshold. Their
        number is counted."""
        self._layers += 1
        least = np.zeros(self.windows.size, np.float32)
        if self:
            self._of(least)[1:] = np.array(self._thresholds)[:, None]

        def chosen(logits: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
            weights, active = routed(logits, config.num_experts_per_tok, least, normalized=config.norm_topk_prob)
            if self:
                some = self._of(active)
                self._seen.values += some.sum(2).mean(1), [misses(each, _QUARTERS)[1] for each in some]
            return weights, active

        return chosen

    def measure(self, x: np.ndarray, head: Iterator[np.ndarray], bias: np.ndarray | None,
                config: AnyConfig) -> None:
        """See what comes of each threshold. x: float32 (rows, columns), what the output head meets. head: its rows,
        some at a time."""
        rows, first = self._of(x), 0
        found = Divergence(len(self._thresholds), rows.shape[1])
        for some in head:
            logits = rows @ some.T
            if bias is not None:
                logits += bias[first:first + len(some)]
            first += len(some)
            logits *= np.float32(config.logit_scale)
            if config.logit_softcap is not None:
                logits = np.float32(config.logit_softcap) * np.tanh(logits / np.float32(config.logit_softcap))
            found.add(logits)
        self._losses.values = found.nats()

    def curve(self) -> list[list[float]]:
        """What a header has of it, after `measure`: an ExpertLoss for each threshold, of which a higher one never costs
        less. Empty where nothing was measured, or something is not finite."""
        if not self or not np.isfinite(self._losses.values).all():
            return []
        nats = np.maximum.accumulate(np.clip(self._losses.values, 0, MOST_NATS))
        experts, missed = self._seen.values / self._layers
        missed = np.minimum(missed / missed[0] if missed[0] else experts / experts[0], 1)
        return [list(ExpertLoss(threshold, *(round(float(value), 6) for value in values)))
                for threshold, *values in zip(self._thresholds, nats, experts[1:], missed[1:], strict=True)]

    def _of(self, values: np.ndarray) -> np.ndarray:
        """Of rows, (rows, …), those that are measured with, (1 + thresholds, tokens, …), without a threshold first."""
        return values[self.observed:].reshape(1 + len(self._thresholds), -1, *values.shape[1:])


def measuring_window(windows: np.ndarray) -> np.ndarray:
    """The text to measure with, of token ids (windows, tokens): one window, int64 of shape (tokens,)."""
    tokens = windows.shape[1]
    places = np.unique(np.linspace(0, len(windows) - 1, _PLACES).astype(int))
    return np.concatenate([windows[place, :-(-tokens // len(places))] for place in places])[:tokens]


def routed(logits: np.ndarray, per_token: int, thresholds: np.ndarray | float, *,
           normalized: bool) -> tuple[np.ndarray, np.ndarray]:
    """What each expert weighs for each token, and which experts it has, as kernels.expert_records.Route says.

    logits: float32 (tokens, experts). thresholds: one for all, or float32 (tokens,). Returns float32 and bool of the
    shape of logits; a weight says nothing where a token does not have the expert.
    """
    chosen = np.argsort(-logits, 1, kind="stable")[:, :per_token]
    active = np.zeros(logits.shape, bool)
    np.put_along_axis(active, chosen, True, 1)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    least = np.float32(thresholds) * (weights * active).sum(1)
    stays = weights >= least[:, None]
    np.put_along_axis(stays, chosen[:, :1], True, 1)
    active &= stays
    weights /= (weights * active if normalized else weights).sum(1, keepdims=True)
    return weights, active


class Divergence:
    """Kullback-Leibler divergences of some distributions from a first one, of which parts of the logits come one after
    another. count: of distributions beside the first, each for so many tokens."""

    def __init__(self, count: int, tokens: int) -> None:
        self._most, self._sum = np.full((1 + count, tokens), -np.inf), np.zeros((1 + count, tokens))
        self._between = np.zeros((count, tokens))
        """The sum of exp(first - its most) * (first - other)."""

    def add(self, logits: np.ndarray) -> None:
        """logits: float32 (1 + count, tokens, some of the vocabulary)."""
        before = self._most
        self._most = np.maximum(before, logits.max(2))
        fades = np.exp(before - self._most)
        self._sum *= fades
        self._between *= fades[0]
        first = logits[0].astype(np.float64)
        likely = np.exp(first - self._most[0, :, None])
        self._sum[0] += likely.sum(1)
        for number, other in enumerate(logits[1:]):
            self._sum[1 + number] += np.exp(other - self._most[1 + number, :, None]).sum(1)
            self._between[number] += (likely * (first - other)).sum(1)

    def nats(self) -> np.ndarray:
        """Of each, the mean over all tokens: float64 of shape (count,)."""
        normalizers = self._most + np.log(self._sum)
        return (self._between / self._sum[0] - normalizers[0] + normalizers[1:]).mean(1)
