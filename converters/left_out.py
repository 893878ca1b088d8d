"""What it costs to leave out experts that weigh little, or neurons that a predictor takes to be zero: a curve, measured
while a mixture of experts, or a sparse model, is calibrated.

A part of the calibration text goes through the model again for each of some thresholds, in the same pass: each weight
is read once for all. At the end stands the Kullback-Leibler divergence of what the model then says of the next token
from what it says with all of its experts, or neurons. It takes few tokens (docs/notes/presets.md), and is what
`max_loss` counts: nats of likelihood a token.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from edgert.bundle.header import ACTIVITY_PARTS, MOST_NATS, ExpertLoss, score_of
from edgert.models.config import Config as AnyConfig
from edgert.models.expert_config import Config

from .ordering import misses, needed_units
from .predictor import Predictor

_OF_EVEN = (0.2, 0.4, 0.6, 0.8, 1.0, 1.25)
"""Thresholds, in parts of what each expert of a token would weigh if all weighed the same. Below the first hardly any
expert is left out, at the last most are; what a token's experts weigh is as uneven with 2 of them as with 8."""
_PROBABILITIES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.35)
"""Thresholds of neurons: below the first hardly any that is active is left out, below the last about half are."""
_PLACES = 4
"""The text that is measured with is the beginnings of so many windows, from all over the text, as prose is not like
code."""
CURVE_BYTES = (64 + 6 * ACTIVITY_PARTS) * len(_OF_EVEN)
"""At most so many are a curve's in a header."""


def thresholds_of(config: AnyConfig) -> list[float]:
    """Those that are tried, ascending; none where there is nothing to leave out."""
    if config.sparse:
        return list(_PROBABILITIES)
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
            self._seen.values = np.zeros((2 + ACTIVITY_PARTS, 1 + len(thresholds)))
            """Over all layers so far: how many experts a token has, or the share of its neurons; of neurons the share
            of those that are active that it has; what is missed of experts, or units (ordering.misses)."""
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
                self._seen.values[0] += some.sum(2).mean(1)
                self._seen.values[2:] += np.stack([misses(each, ACTIVITY_PARTS) for each in some], 1)
            return weights, active

        return chosen

    @property
    def fitting(self) -> np.ndarray:
        """The rows of the text that predictors are fitted to: all that nothing is measured with. int64."""
        rows = np.arange(self.observed)
        apart = _measuring(self.windows[:self.observed // self.windows.shape[1]])
        return np.setdiff1d(rows, apart) if len(apart) < len(rows) else rows

    def predicting(self) -> Callable[[np.ndarray, np.ndarray, Predictor, tuple[int, int]], None]:
        """What leaves out a layer's neurons: of activations `hidden`, (rows, neurons), changed, those of each row that
        the predictor says, for inputs x, are active with less than the row's threshold. The last argument is how many
        neurons are in a unit, as they are needed exactly and for the predictor."""
        self._layers += 1

        def leave_out(hidden: np.ndarray, x: np.ndarray, predictor: Predictor, in_units: tuple[int, int]) -> None:
            active = hidden != 0
            order = np.argsort(-active[:self.observed].sum(0), kind="stable")
            inputs, made, of_active = self._of(x), self._of(hidden), self._of(active)
            for number, values in enumerate(made):
                stays = of_active[number]
                if number:
                    stays = predictor.scores(inputs[number]) > np.float32(score_of(self._thresholds[number - 1]))
                    values[~stays] = 0
                units = needed_units(stays[:, order], in_units[number > 0])
                there = of_active[number].sum()
                self._seen.values[:, number] += (
                    stays.mean(), (stays & of_active[number]).sum() / there if there else 1.0,
                    *misses(units, ACTIVITY_PARTS))

        return leave_out

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

    def curve(self, config: AnyConfig) -> list[list[Any]]:
        """What a header has of it, after `measure`: an ExpertLoss or a NeuronLoss for each threshold, of which a higher
        one never costs less. Empty where nothing was measured, or something is not finite."""
        if not self or not np.isfinite(self._losses.values).all():
            return []
        nats = np.maximum.accumulate(np.clip(self._losses.values, 0, MOST_NATS))
        stay, recall, *missing = self._seen.values / self._layers
        missed = missing[ACTIVITY_PARTS // 4]

        def rounded(values: Iterable[Any]) -> list[float]:
            return [round(float(value), 6) for value in values]

        if config.experts:
            missed = np.minimum(missed / missed[0] if missed[0] else stay / stay[0], 1)
            return [list(ExpertLoss(threshold, *rounded(values)))
                    for threshold, *values in zip(self._thresholds, nats, stay[1:], missed[1:], strict=True)]
        counts = np.round(10000 * np.stack(missing)).astype(int)
        return [[threshold, *rounded(values), counts[:, number].tolist()]
                for number, (threshold, *values) in enumerate(zip(
                    self._thresholds, nats, stay[1:], recall[1:], strict=True), 1)]

    def _of(self, values: np.ndarray) -> np.ndarray:
        """Of rows, (rows, …), those that are measured with, (1 + thresholds, tokens, …), without a threshold first."""
        return values[self.observed:].reshape(1 + len(self._thresholds), -1, *values.shape[1:])


def measuring_window(windows: np.ndarray) -> np.ndarray:
    """The text to measure with, of token ids (windows, tokens): one window, int64 of shape (tokens,)."""
    return windows.reshape(-1)[_measuring(windows)]


def _measuring(windows: np.ndarray) -> np.ndarray:
    """Where those tokens are among all: int64."""
    tokens = windows.shape[1]
    places = np.unique(np.linspace(0, len(windows) - 1, _PLACES).astype(int))
    return (places[:, None] * tokens + np.arange(-(-tokens // len(places)))).reshape(-1)[:tokens]


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
