"""The order of a sparse layer's neurons: those that are most often not zero come first.

Any order computes the same function. In this one units of neurons at the end of a layer are seldom needed, since how
often a neuron is active follows a power law (PowerInfer, Song et al. 2023), and those at its beginning are worth
keeping.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from edgert.models.tensors import FeedForward

from .source import Grid, SourceTensor

_SPAN = 4
"""Rows are read together where those from the first to the last are no more than so many times as many."""


class Ordered:
    """A source tensor with its rows, or its columns, in another order, or only some of them. Implements
    source.SourceTensor.

    order: int64, which row (columns: column) of `tensor` comes in each place.
    """

    def __init__(self, tensor: SourceTensor, order: np.ndarray, *, columns: bool) -> None:
        self._tensor, self._order, self._columns = tensor, order, columns
        self.shape = (tensor.shape[0], len(order)) if columns else (len(order), *tensor.shape[1:])
        self.type_name = tensor.type_name

    def read(self, start: int, stop: int) -> np.ndarray:
        if self._columns:
            return self._tensor.read(start, stop)[:, self._order]
        some = self._order[start:stop]
        if len(some) and (span := some.max() + 1 - some.min()) <= _SPAN * len(some):
            return self._tensor.read(int(some.min()), int(some.min() + span))[some - some.min()]
        rows = np.empty((stop - start, *self.shape[1:]), np.float32)
        for place, row in enumerate(some.tolist()):
            rows[place] = self._tensor.read(row, row + 1)[0]
        return rows

    def grid(self, start: int, stop: int) -> Grid | None:
        """A grid stands for 32 neighbours, which are none any more."""
        return None


def misses(needed: np.ndarray, parts: int) -> np.ndarray:
    """What a token needs of a layer's units and does not find in memory, in parts of all of them: float64 of shape
    (parts,). Of the units those needed last are in memory, 0, 1 ... parts - 1 of so many parts of them.

    needed: bool of shape (tokens, units). By stack distances (Mattson et al. 1970): a unit is in memory if fewer than
    fit were needed since it was.
    """
    count = needed.shape[1]
    last, distance, found = -1 - np.arange(count), np.empty(count, np.int64), np.zeros(parts, np.int64)
    for token in range(len(needed)):
        distance[np.argsort(-last, kind="stable")] = np.arange(count)
        found += np.bincount(distance[needed[token]] * parts // count, minlength=parts)
        last[needed[token]] = token
    return found[::-1].cumsum()[::-1] / needed.size


def needed_units(active: np.ndarray, in_unit: int) -> np.ndarray:
    """Which units of so many neighbours have one that is active: bool (tokens, units), of (tokens, neurons)."""
    padded = np.pad(active, ((0, 0), (0, -active.shape[1] % in_unit)))
    found: np.ndarray = np.any(padded.reshape(len(active), -1, in_unit), axis=2)
    return found


@dataclass(frozen=True)
class NeuronOrder:
    """How the neurons of a layer are ordered, by what was seen of them.

    order: int64, which neuron comes in each place. misses: of units of neurons in that order, as `misses` gives them.
    """

    order: np.ndarray
    misses: np.ndarray

    @classmethod
    def of(cls, active: np.ndarray, in_unit: int, parts: int) -> Self:
        """active: bool of shape (tokens, neurons), which neurons are not zero. in_unit: neurons in a unit."""
        order = np.argsort(-active.sum(0), kind="stable")
        return cls(order, misses(needed_units(active[:, order], in_unit), parts))

    def applied(self, part: FeedForward, tensors: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
        """The tensors of the layer that have neurons as rows or columns, in this order, by name."""
        rows = [spec for spec in (*part.by_rows, part.up_bias) if spec is not None]
        found: dict[str, SourceTensor] = {spec.name: Ordered(tensors[spec.name], self.order, columns=False)
                                          for spec in rows}
        return found | {part.down.name: Ordered(tensors[part.down.name], self.order, columns=True)}
