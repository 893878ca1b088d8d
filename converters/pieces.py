"""What a bundle is made of, piece by piece: computed from the source, and not yet written."""

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import xxhash

from edgert.bundle import Header
from edgert.bundle.header import PREDICTORS, down_headers
from edgert.kernels.formats import SLAB
from edgert.models.tensors import FeedForward, Role, TensorSpec, feed_forward_parts

from .calibration import State
from .packing import Packing
from .rounding import Importances
from .source import Source


@dataclass(frozen=True)
class Piece:
    """Bytes that follow those of the piece before in the same place.

    place: the tensor that they are of, or the section, for neurons. weights: how many of the source's are in it, those
    of neurons counted once. checksums: xxh3_64 of the units in it.
    """

    place: str
    data: np.ndarray
    weights: int = 0
    checksums: "array[int]" = field(default_factory=lambda: array("Q"))


class Pieces:
    """The pieces of a bundle of this header, computed here.

    importances: what is known before rounding; None for nothing. Tensors are asked for in the order of use. All methods
    raise SourceError.
    """

    def __init__(self, source: Source, header: Header, importances: Importances | None) -> None:
        self.header, self.importances = header, importances
        self._packing = Packing(source, header, importances.of if importances else lambda name: None)
        self._parts = feed_forward_parts(source.config.tensors(), sparse=header.config.sparse)
        self._deciding = {part.deciding: layer for layer, part in enumerate(self._parts)}
        self._orders: dict[int, np.ndarray] = {}
        """Of sparse layers whose neurons are in order, and not yet made."""

    def of(self, spec: TensorSpec) -> Iterator[Piece]:
        """Those of a tensor; a layer's neurons are its down projection's, and there are none of its other matrices."""
        if spec in self._deciding:
            self._order(self._deciding[spec])
        if not spec.is_matrix:
            yield Piece(spec.name, self._packing.vector(spec), weights_of(spec))
        elif spec.role not in self.header.config.in_groups:
            yield from self._matrix(spec)
        elif spec.role is Role.DOWN:
            assert spec.layer is not None
            layer = spec.layer - self.header.config.dense_layers
            yield from self._neurons(layer, self._parts[layer])

    def finish(self) -> None:
        """After all tensors: keep what it costs to leave out experts or neurons, if that is to be known."""
        if self.importances and self.header.config.experts:
            self.header.quantization["expert_loss"] = self.importances.left_out_losses()
        elif self.importances and PREDICTORS in self.header.sections:
            self.header.quantization["neuron_loss"] = self.importances.left_out_losses()

    def state(self) -> State | None:
        """How far it is calibrated, as `Calibration.state`, for what follows the tensors that were asked for."""
        return self.importances.state() if self.importances else State()

    def go_on(self, state: State) -> None:
        """As `Calibration.go_on`."""
        if self.importances:
            self.importances.go_on(state)

    def _order(self, layer: int) -> None:
        """Put the neurons of a sparse layer in order, if anything is known of them."""
        order = self.importances.order(layer) if self.importances else None
        if order is not None:
            self._packing.reorder(self._parts[layer], order)
            self._orders[layer] = order.order
            self.header.activity[layer] = np.round(10000 * order.misses).astype(int).tolist()

    def _note_misses(self, layer: int) -> None:
        """Keep what is known of which experts tokens need."""
        if self.importances:
            misses = self.importances.misses(layer)
            self.header.activity[layer] = np.round(10000 * misses).astype(int).tolist()

    def _matrix(self, spec: TensorSpec) -> Iterator[Piece]:
        """A matrix that is not in neuron groups; its units are slabs."""
        shares = _Shares(weights_of(spec), self.header.tensors[spec.name].length)
        for tiles in self._packing.matrix(spec):
            slabs = (tiles[i:i + SLAB].tobytes() for i in range(0, len(tiles), SLAB))
            yield Piece(spec.name, tiles, shares.of(tiles.nbytes), array("Q", map(xxhash.xxh3_64_intdigest, slabs)))

    def _neurons(self, layer: int, part: FeedForward) -> Iterator[Piece]:
        """A layer's groups, or a sparse layer's units, or those of experts, some at a time: of each section what they
        have in it."""
        neurons = self.header.neurons[layer]
        shares = _Shares(sum(map(weights_of, [*part.in_groups, part.down])), neurons.groups)
        groups: Iterable[list[np.ndarray]]
        if self.header.config.sparse:
            yield from self._units(layer, part, shares)
            return
        if self.header.config.experts:
            self._note_misses(layer)
            groups = ([units] for units in self._packing.experts(layer, part))
        else:
            headers, groups = self._packing.neurons(layer, part)
            if headers.size:
                yield Piece(down_headers(layer), headers)
        for some in groups:
            weights = shares.of(len(some[0]))
            for (section, _), planes in zip(neurons.parts(), some, strict=True):
                yield Piece(section, planes, weights, array("Q", map(xxhash.xxh3_64_intdigest, planes)))
                weights = 0

    def _units(self, layer: int, part: FeedForward, shares: "_Shares") -> Iterator[Piece]:
        """A sparse layer's units, and its predictor."""
        own = self.header.neurons[layer].section
        for section, units in self._packing.units(layer, part):
            yield Piece(section, units, shares.of(len(units)) if section == own else 0,
                        array("Q", map(xxhash.xxh3_64_intdigest, units)))
        if PREDICTORS in self.header.sections:
            assert self.importances
            fitted, order = self.importances.predictor(layer), self._orders.pop(layer)
            for name, data in self._packing.predictor(layer, fitted, order):
                yield Piece(name, data)


class _Shares:
    """Shares of a number of weights, for parts that come one after another."""

    def __init__(self, weights: int, parts: int) -> None:
        self._weights, self._parts, self._done = weights, parts, 0

    def of(self, more: int) -> int:
        before, self._done = self._done, self._done + more
        return self._weights * self._done // self._parts - self._weights * before // self._parts


def weights_of(spec: TensorSpec) -> int:
    return math.prod(spec.shape)
