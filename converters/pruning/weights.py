"""Pruning single weights: each matrix when it is known what it gets to see in a model that is pruned before it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from edgert.bundle.header import PRUNED_KINDS
from edgert.converters.calibration import Calibration, State
from edgert.converters.source import Source
from edgert.errors import SourceError
from edgert.models.tensors import FEED_FORWARD

from .compensation import compensated
from .inputs import Inputs
from .patterns import NOfM, Pattern
from .pruned_tensor import PrunedTensor
from .regrowing import regrown
from .request import Request, prunable
from .scratch import Scratch

KEEP_S = 10
"""Seconds after which what is done is kept again."""


class WeightPruning:
    """All matrices of a model, pruned as asked, or what of it is left to do.

    amounts: of each matrix, by name. windows: token ids of a text to run through the model, where the method needs one.
    progress(weights, total): called when so many more are gone through. Raises SourceError or BundleError.
    """

    def __init__(self, source: Source, request: Request, amounts: Mapping[str, float], windows: np.ndarray | None,
                 scratch: Scratch, progress: Callable[[int, int], None]) -> None:
        self._before, self._request, self._amounts, self._scratch = source, request, amounts, scratch
        self._specs = {spec.name: spec for spec in prunable(source.config)}
        values = request.method == "sparsegpt"
        tensors = dict(source.tensors) | {name: PrunedTensor(name, source.tensors[name], scratch, values=values)
                                          for name in self._specs}
        self.source = replace(source, tensors=tensors)
        """The pruned model."""
        self.zeros = dict.fromkeys(PRUNED_KINDS, 0)
        """How many weights are 0."""
        self._done: set[str] = set()
        self._progress: Callable[[int], None] = lambda weights: progress(weights, self.weights)
        self._calibration = None if windows is None or not request.needs_text else _Pass(
            self.source, windows, self._prune, self._progress)
        self._kept_at = time.monotonic()
        self.weights = (self._calibration.weights if self._calibration else
                        sum(int(np.prod(spec.shape)) for spec in self._specs.values()))
        """How many are gone through in all."""

    def run(self) -> None:
        """Prune what is not yet pruned."""
        if (entry := self._scratch.kept) is not None:
            self.zeros, self._done = dict(entry.state["zeros"]), set(entry.state["places"])
            self._progress(entry.state["weights"])
            if self._calibration:
                self._calibration.go_on(State(entry.state["steps"], entry.state["weights"], {
                    int(number): values for number, values in entry.arrays.items()}))
        if self._calibration is None:
            for name, spec in self._specs.items():
                if name not in self._done:
                    self._prune(name, None)
                    self._progress(int(np.prod(spec.shape)))
                    self._keep()
        else:
            while len(self._done) < len(self._specs):
                self._calibration.run()
                self._keep()
        self._keep(now=True)

    def _prune(self, name: str, inputs: Inputs | None) -> None:
        if name not in self._specs:
            return
        spec, tensor = self._specs[name], self._before.tensors[name]
        weights = tensor.read(0, tensor.shape[0])
        amount, pattern = self._amounts[name], self._request.pattern
        if self._request.method == "sparsegpt":
            assert inputs is not None
            made = compensated(weights, inputs.moments, amount, pattern)
            self._scratch.put_values(name, made)
            zeros = self._scratch.read_values(name, 0, tensor.shape[0]) == 0
        else:
            kept = kept_of(self._request.method, weights, inputs, amount, pattern)
            self._scratch.put_kept(name, kept)
            zeros = ~kept | (weights == 0)
        self.zeros["feed-forward" if spec.role in FEED_FORWARD else "attention"] += int(zeros.sum())
        self._done.add(name)

    def _keep(self, *, now: bool = False) -> None:
        if not now and time.monotonic() < self._kept_at + KEEP_S:
            return
        state = self._calibration.state() if self._calibration else State(0, sum(
            int(np.prod(self._specs[name].shape)) for name in self._done))
        assert state is not None
        self._scratch.keep({"zeros": self.zeros, "steps": state.steps, "weights": state.weights},
                           {str(number): values for number, values in state.values.items()})
        self._kept_at = time.monotonic()


def kept_of(method: str, weights: np.ndarray, inputs: Inputs | None, amount: float, pattern: Pattern) -> np.ndarray:
    """What of a matrix is kept, bool of its shape. weights: float32 of shape (rows, columns). inputs: its own; None
    for magnitude."""
    if method == "magnitude":
        return pattern.kept(np.abs(weights), amount, by_row=False)
    assert inputs is not None
    scores = np.abs(weights) * inputs.norms  # Wanda (Sun et al. 2023)
    kept = pattern.kept(scores, amount, by_row=True)
    if method == "dsnot":
        group = pattern.m if isinstance(pattern, NOfM) else 0
        return regrown(weights, kept, scores, inputs.mean, inputs.variance, group)
    return kept


class _Pass(Calibration):
    """Goes through a model, and has each matrix pruned before it is used. prune(name, inputs): called with each."""

    def __init__(self, source: Source, windows: np.ndarray, prune: Callable[[str, Inputs], None],
                 progress: Callable[[int], None]) -> None:
        super().__init__(source, windows, frozenset(), progress)
        self._prune = prune

    def _observe(self, x: np.ndarray, names: Sequence[str], *, squares_alone: bool = False) -> None:
        inputs = Inputs(x)
        if not np.isfinite(inputs.norms).all():
            raise SourceError(f"{names[0]}: what the model computes for the text is not finite, so it is not known "
                              "what to prune; is the model damaged?")
        for name in names:
            self._prune(name, inputs)
