"""Pruning what is whole: neurons of feed-forward parts, or layers. The model that is left is smaller, and has no zeros.

A text goes through the model once, as it is. A neuron counts by the size of what it adds to its layer's output, the
norm of its values over the text times that of its column of the down projection (as CFSP, Wang et al. 2024, and
LLM-Pruner, Ma et al. 2023, join activations and weights); each layer keeps as many. A layer counts by its Block
Influence (ShortGPT, Men et al. 2024): 1 less the mean cosine of what goes into it and what comes out.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgert.converters.calibration import Calibration
from edgert.converters.ordering import NeuronOrder
from edgert.converters.source import Source, SourceTensor
from edgert.errors import SourceError
from edgert.kernels.formats import BLOCK
from edgert.models.config import Config
from edgert.models.tensors import TensorSpec, feed_forward_parts

from .patterns import pruned_of

Progress = Callable[[int, int], None]
"""Called with how many more weights have been gone through, and how many there are in all."""


def without_neurons(source: Source, amount: float, windows: np.ndarray, progress: Progress) -> Source:
    """The model with so much fewer neurons in each layer, rounded to whole groups of them. Raises SourceError."""
    config = source.config
    left = config.intermediate_size - round(config.intermediate_size * amount / BLOCK) * BLOCK
    if not 0 < left < config.intermediate_size:
        raise SourceError(f"of {config.intermediate_size} neurons, pruned {BLOCK} at a time, {100 * amount:g}%"
                          f" {'leaves none' if left <= 0 else 'is none'}; choose another amount")
    found = _Contributions(source, windows, progress)
    tensors = dict(source.tensors)
    for layer, part in enumerate(feed_forward_parts(config.tensors())):
        order = np.sort(np.argsort(-found.contribution(layer), kind="stable")[:left])
        tensors |= NeuronOrder(order, np.empty(0)).applied(part, tensors)
    return replace(source, config=replace(config, intermediate_size=left), tensors=tensors)


def without_layers(source: Source, amount: float, windows: np.ndarray, progress: Progress) -> Source:
    """The model without so many of its layers, rounded down, but for the first and the last. Raises SourceError."""
    config = source.config
    layers, gone = config.num_hidden_layers, pruned_of(config.num_hidden_layers, amount)
    if not 0 < gone <= layers - 2:
        raise SourceError(f"{100 * amount:g}% of {layers} layers is {gone}; at least one can be pruned, and at most "
                          f"{max(layers - 2, 0)}, as the first and the last stay")
    require_alike(config)
    influence = _Influence(source, windows, progress).of_layers()
    influence[[0, -1]] = np.inf
    kept = sorted(set(range(layers)) - set(np.argsort(influence, kind="stable")[:gone].tolist()))
    smaller = replace(config, num_hidden_layers=len(kept))
    names = {(spec.layer, _within(spec.name, spec.layer)): spec.name for spec in config.tensors()}

    def before(spec: TensorSpec) -> str:
        return names[None if spec.layer is None else kept[spec.layer], _within(spec.name, spec.layer)]

    tensors: dict[str, SourceTensor] = {
        spec.name: source.tensors[before(spec)] for spec in smaller.tensors()}
    return replace(source, config=smaller, tensors=tensors)


def require_alike(config: Config) -> None:
    """Raises SourceError where layers are not all of one kind."""
    kinds = {(config.window(layer), config.rope_table(layer)) for layer in range(config.num_hidden_layers)}
    if len(kinds) > 1:
        raise SourceError(f"{config.architecture}: the model's layers take turns in what they see of a text, so none "
                          "can be left out; prune weights or neurons")


def _within(name: str, layer: int | None) -> str:
    """A tensor's name without its layer's number."""
    return name if layer is None else name.replace(f".{layer}.", ".", 1)


class _Look(Calibration):
    """Goes through a model to see something of it."""

    def __init__(self, source: Source, windows: np.ndarray, progress: Progress) -> None:
        super().__init__(source, windows, frozenset(), lambda weights: progress(weights, self.weights))


class _Contributions(_Look):
    """What neurons add to the output of their layer."""

    def __init__(self, source: Source, windows: np.ndarray, progress: Progress) -> None:
        self._found: dict[str, np.ndarray] = {}
        super().__init__(source, windows, progress)
        self._downs = {part.down.name for part in self._feed_forward}

    def contribution(self, layer: int) -> np.ndarray:
        """Of each neuron, float64 of shape (neurons,). Raises SourceError."""
        name = self._feed_forward[layer].down.name
        while name not in self._found:
            self.run()
        return self._found.pop(name)

    def _observe(self, x: np.ndarray, names: Sequence[str], *, squares_alone: bool = False) -> None:
        for name in self._downs & set(names):
            squares = np.zeros(x.shape[1])
            tensor = self._source.tensors[name]
            for start in range(0, tensor.shape[0], BLOCK):
                squares += np.square(tensor.read(start, min(start + BLOCK, tensor.shape[0]))).sum(0)
            self._found[name] = np.sqrt(squares * np.einsum("ti,ti->i", x, x))


class _Influence(_Look):
    """What layers change."""

    def __init__(self, source: Source, windows: np.ndarray, progress: Progress) -> None:
        self._before: np.ndarray | None = None
        self._influence: list[float] = []
        super().__init__(source, windows, progress)

    def of_layers(self) -> np.ndarray:
        """Of each layer its influence, float64. Raises SourceError."""
        while len(self._influence) < self._source.config.num_hidden_layers:
            self.run()
        return np.array(self._influence)

    def embedding(self, weight: str, *, scale: float = 1.0) -> Any:
        self._stream = super().embedding(weight, scale=scale)
        return self._stream

    def attention(self, qkv: Any, layer: int, *, sinks: str | None = None) -> Any:
        self._steps.append(self._look)  # nothing has been added to what goes into a layer until then
        return super().attention(qkv, layer, sinks=sinks)

    def logits(self, x: Any, norm: str, head: str, **options: Any) -> None:
        self._steps.append(self._look)
        super().logits(x, norm, head, **options)

    def _look(self) -> None:
        now = self._stream.values.astype(np.float64)
        if self._before is not None:
            cosine = (now * self._before).sum(1) / np.maximum(
                np.linalg.norm(now, axis=1) * np.linalg.norm(self._before, axis=1), 1e-30)
            self._influence.append(1 - float(cosine.mean()))
        self._before = now
