"""How much a model loses where its matrices are pruned by these amounts: the divergence of its next tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgert.converters.calibration import Calibration
from edgert.converters.source import Grid, Source, SourceTensor
from edgert.models.tensors import FEED_FORWARD

from .inputs import Inputs
from .patterns import Pattern
from .request import prunable

_ROWS_AT_ONCE = 4096
"""Tokens of the vocabulary whose logits are in memory at a time."""


@dataclass(frozen=True)
class Group:
    """Matrices that are pruned by one amount: those of a layer's attention, or of its feed-forward part."""

    layer: int
    kind: str
    names: tuple[str, ...]
    weights: int


def groups_of(source: Source) -> list[Group]:
    """In the order of use."""
    found: dict[tuple[int, str], list[Any]] = {}
    for spec in prunable(source.config):
        assert spec.layer is not None
        kind = "feed-forward" if spec.role in FEED_FORWARD else "attention"
        found.setdefault((spec.layer, kind), []).append(spec)
    return [Group(layer, kind, tuple(spec.name for spec in specs), sum(int(np.prod(spec.shape)) for spec in specs))
            for (layer, kind), specs in found.items()]


@dataclass(frozen=True)
class Judge:
    """Judges a source model against itself, unpruned.

    norms: of the inputs of each matrix, as that has them. hidden: what the output head gets, float32 of shape (tokens,
    hidden size), of all windows. windows: token ids.
    """

    source: Source
    pattern: Pattern
    windows: np.ndarray
    norms: Mapping[str, np.ndarray]
    hidden: np.ndarray

    @classmethod
    def of(cls, source: Source, pattern: Pattern, windows: np.ndarray) -> "Judge":
        """Raises SourceError."""
        windows = windows[:, :source.config.max_position_embeddings]
        seen = _Seen(source, windows)
        return cls(source, pattern, windows, seen.norms, seen.hidden)

    def errors(self, groups: list[Group], amount: float) -> np.ndarray:
        """Of each group what it changes in its products to prune it by so much, squared, in parts of them, inputs taken
        to be independent: float64. Raises SourceError."""
        found = []
        for group in groups:
            part = 0.0
            for name in group.names:
                tensor = self.source.tensors[name]
                scores = np.abs(tensor.read(0, tensor.shape[0])) * self.norms[name]
                gone = ~self.pattern.kept(scores, amount, by_row=True)
                part += float(np.square(scores[gone], dtype=np.float64).sum()
                              / max(np.square(scores, dtype=np.float64).sum(), 1e-30))
            found.append(part / len(group.names))
        return np.array(found)

    def loss(self, amounts: Mapping[str, float], window: int | None = None) -> float:
        """The mean divergence (Kullback and Leibler 1951) of the pruned model's next tokens from the source's, in nats.
        window: the number of the only window to judge by. Raises SourceError."""
        some = slice(None) if window is None else slice(window, window + 1)
        windows, tokens = self.windows[some], self.windows.shape[1]
        hidden = self.hidden.reshape(len(self.windows), tokens, -1)[some].reshape(len(windows) * tokens, -1)
        tensors = dict(self.source.tensors) | {
            name: _Masked(self.source.tensors[name], self.norms[name], self.pattern, amount)
            for name, amount in amounts.items() if amount > 0}
        seen = _Seen(replace(self.source, tensors=tensors), windows)
        return seen.divergence(hidden)


class _Masked:
    """A matrix pruned by Wanda's measure. Implements source.SourceTensor."""

    def __init__(self, tensor: SourceTensor, norms: np.ndarray, pattern: Pattern, amount: float) -> None:
        self.shape, self.type_name = tensor.shape, tensor.type_name
        self._tensor, self._norms, self._pattern, self._amount = tensor, norms, pattern, amount
        self._whole: np.ndarray | None = None

    def read(self, start: int, stop: int) -> np.ndarray:
        if self._whole is None:
            whole = self._tensor.read(0, self.shape[0])
            whole *= self._pattern.kept(np.abs(whole) * self._norms, self._amount, by_row=True)
            self._whole = whole
        rows = self._whole[start:stop]
        if stop == self.shape[0]:
            self._whole = None
        return rows

    def grid(self, start: int, stop: int) -> Grid | None:
        return None


class _Seen(Calibration):
    """What is seen of a model from its embedding to its output head."""

    def __init__(self, source: Source, windows: np.ndarray) -> None:
        self.norms: dict[str, np.ndarray] = {}
        self.hidden = np.empty(0, np.float32)
        self._head: tuple[str, str | None] = "", None
        super().__init__(source, windows, frozenset())
        while self._steps:
            self.run()

    def _observe(self, x: np.ndarray, names: Any, *, squares_alone: bool = False) -> None:
        self.norms |= dict.fromkeys(names, Inputs(x).norms)

    def logits(self, x: Any, norm: str, head: str, *, norm_bias: str | None = None, centered: bool = False,
               head_bias: str | None = None) -> None:
        h = self.norm(x, norm, bias=norm_bias, centered=centered)
        self._head = head + ".weight", head_bias

        def step() -> None:
            self.hidden = h.values

        self._steps.append(step)

    def divergence(self, before: np.ndarray) -> float:
        """Of the distributions of next tokens from those that `before` leads to: float32 (tokens, hidden size)."""
        tokens, (name, bias_name) = len(before), self._head
        tensor, bias = self._source.tensors[name], None if bias_name is None else self._vector(bias_name)
        top, total = np.full((2, tokens), -np.inf), np.zeros((2, tokens))
        differences = np.zeros(tokens)
        with np.errstate(all="ignore"):
            for start in range(0, tensor.shape[0], _ROWS_AT_ONCE):
                stop = min(start + _ROWS_AT_ONCE, tensor.shape[0])
                rows = tensor.read(start, stop)
                was, now = (self._logits(x, rows, None if bias is None else bias[start:stop])
                            for x in (before, self.hidden))
                for i, made in enumerate((was, now)):
                    highest = np.maximum(top[i], made.max(1))
                    shrunk = np.exp(top[i] - highest)
                    weights = np.exp(made - highest[:, None])
                    total[i] = total[i] * shrunk + weights.sum(1)
                    top[i] = highest
                    if i == 0:
                        differences = differences * shrunk + (weights * (was - now)).sum(1)
            found = differences / total[0] - (top[0] + np.log(total[0])) + top[1] + np.log(total[1])
        return float(np.nan_to_num(found, nan=1e9, posinf=1e9).mean())

    def _logits(self, x: np.ndarray, rows: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        made = (x @ rows.T + (0 if bias is None else bias)) * np.float32(self._source.config.logit_scale)
        if (cap := self._source.config.logit_softcap) is not None:
            made = np.float32(cap) * np.tanh(made / np.float32(cap))
        return made
