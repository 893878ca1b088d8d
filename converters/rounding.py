"""What a conversion learns of a model before it rounds: of the inputs of matrices that become 4 bits or fewer and were
not before, and of which neurons of sparse layers, or experts, are active."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from edgert.bundle import Header
from edgert.bundle.header import ACTIVITY_PARTS, PREDICTORS
from edgert.models.tensors import Role, TensorSpec

from .calibration import Calibration, State
from .calibration_text import shipped_windows, windows_of
from .importance import Importance
from .left_out import thresholds_of
from .ordering import NeuronOrder, misses
from .predictor import Predictor
from .quantizer import on_grid
from .source import Source

_FEW_BITS = {"q2", "q3", "q4", "q4n", "q4b"}


def newly_rounded(source: Source, header: Header) -> set[str]:
    """The matrices that become 4 bits or fewer in a bundle of this header and do not stand on such a grid yet, by
    name; but for the embedding, whose rows are no products."""
    return {spec.name for spec in source.config.tensors() if spec.is_matrix and spec.role is not Role.EMBEDDING
            and (form := _format(spec, header)).partition("-")[0] in _FEW_BITS
            and not on_grid(source.tensors[spec.name], form)}


def _format(matrix: TensorSpec, header: Header) -> str:
    """The format of a matrix in the bundle."""
    if matrix.role not in header.config.in_groups:
        return header.tensors[matrix.name].format
    assert matrix.layer is not None
    if header.config.experts:
        return "experts"  # of one expert a text of some thousand tokens says too little (docs/notes/experts.md)
    neurons = header.neurons[matrix.layer]
    if header.config.sparse and matrix.role is Role.DOWN:
        return "columns"  # coded along themselves: rounding one weight makes up for no error in another
    return neurons.down if matrix.role is Role.DOWN else neurons.gate_up


def windows_for(source: Source, header: Header, texts: Sequence[Path]) -> np.ndarray | None:
    """What to calibrate with, as calibration_text.py makes it: of these files, or where there are none of the text that
    ships. None where nothing is to be known. Raises SourceError where a text cannot be used."""
    wanted = bool(newly_rounded(source, header)) or source.config.selective
    if texts:
        windows = windows_of(source, texts)  # also where they are not wanted: whoever gave them hears what is wrong
        return windows if wanted else None
    return shipped_windows(source) if wanted else None


class Importances:
    """The importance of the matrices that are newly rounded, the order of sparse layers' neurons, and which experts are
    needed, computed as far as they are asked for.

    windows: of `windows_for`. progress(weights) is called when so many more have been gone through. leave_out: also
    measure what it costs to leave out experts, where there are some, or neurons, where the bundle has predictors.
    """

    def __init__(self, source: Source, header: Header, windows: np.ndarray,
                 progress: Callable[[int], None] = lambda weights: None, *, leave_out: bool = True) -> None:
        self._rounded = newly_rounded(source, header)
        self._header = header
        config = source.config
        self._predicts = PREDICTORS in header.sections
        thresholds = thresholds_of(config) if leave_out and (config.experts or self._predicts) else []
        in_units = [(n.units(config).neurons, predicted.units(config).neurons)
                    for n, predicted in zip(header.neurons, header.predicted, strict=False)]
        self._calibration = Calibration(source, windows, self._rounded, progress, thresholds, in_units)
        self._latest: tuple[np.ndarray, Importance] | None = None
        self.weights = self._calibration.weights
        """How many weights are gone through in all."""

    def order(self, layer: int) -> NeuronOrder | None:
        """The order of a layer's neurons; None where there are no zeros. To be asked for once, before the importance of
        the layer's matrices is. Raises SourceError."""
        if not self._header.config.sparse:
            return None
        units = self._header.neurons[layer].units(self._header.config)
        return NeuronOrder.of(self._calibration.active(layer), units.neurons, ACTIVITY_PARTS)

    def misses(self, layer: int) -> np.ndarray:
        """What a token needs of a layer's experts and does not find (ordering.misses), layers counted from the first
        that has some. To be asked for once, after the importance of the layer's matrices, before that of the next
        layer's. Raises SourceError."""
        return misses(self._calibration.active(layer + self._header.config.dense_layers), ACTIVITY_PARTS)

    def of(self, name: str) -> Importance | None:
        """Of a matrix; None where it is not newly rounded. To be asked for once, in the order in which the model uses
        its matrices. Raises SourceError."""
        if name not in self._rounded:
            return None
        moments = self._calibration.moments(name)
        if self._latest is None or self._latest[0] is not moments:  # q, k and v have the same inputs
            self._latest = moments, Importance(moments)
        return self._latest[1] if self._latest[1].usable else None

    def pass_by(self, specs: Iterable[TensorSpec]) -> None:
        """Be where it would be after these tensors' importances were asked for, which nobody wants here."""
        for spec in specs:
            if spec.name in self._rounded:
                self._calibration.moments(spec.name)
            if self._header.config.selective and spec.role is Role.DOWN:
                assert spec.layer is not None
                self._calibration.active(spec.layer)
                if self._predicts:
                    self._calibration.predictor(spec.layer)

    def predictor(self, layer: int) -> Predictor:
        """As `Calibration.predictor`; after `order`."""
        return self._calibration.predictor(layer)

    def left_out_losses(self) -> list[list[float]]:
        """As `Calibration.left_out_losses`."""
        return self._calibration.left_out_losses()

    def state(self) -> State | None:
        """As `Calibration.state`."""
        return self._calibration.state()

    def go_on(self, state: State) -> None:
        """As `Calibration.go_on`."""
        self._calibration.go_on(state)
