"""Which matrices a conversion rounds to 4 bits that were not before, and what is known of their inputs."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgert.bundle import Header
from edgert.models.tensors import FEED_FORWARD, Role, TensorSpec

from .calibration import Calibration
from .calibration_text import shipped_windows, windows_of
from .importance import Importance
from .source import Source


def newly_rounded(source: Source, header: Header) -> set[str]:
    """The matrices that become 4 bits in a bundle of this header and do not stand on a grid of 4 bits yet, by name."""
    return {spec.name for spec in source.config.tensors() if spec.is_matrix and _format(spec, header) == "q4"
            and source.tensors[spec.name].grid(0, 0) is None}


def _format(matrix: TensorSpec, header: Header) -> str:
    """The format of a matrix in the bundle."""
    if matrix.role not in FEED_FORWARD:
        return header.tensors[matrix.name].format
    assert matrix.layer is not None
    neurons = header.neurons[matrix.layer]
    return neurons.down if matrix.role is Role.DOWN else neurons.gate_up


class Importances:
    """The importance of the matrices that are newly rounded, computed as far as it is asked for.

    texts: files to calibrate with; none for the text that ships. progress(weights) is called when so many more have
    been gone through. Raises SourceError where a text cannot be used.
    """

    def __init__(self, source: Source, header: Header, texts: Sequence[Path],
                 progress: Callable[[int], None]) -> None:
        self._rounded = newly_rounded(source, header)
        windows = windows_of(source, texts) if texts else shipped_windows(source) if self._rounded else None
        self._calibration = (Calibration(source, windows, self._rounded, progress)
                             if self._rounded and windows is not None else None)
        self._latest: tuple[np.ndarray, Importance] | None = None
        self.weights = 0 if self._calibration is None else self._calibration.weights
        """How many weights are gone through in all."""

    def of(self, name: str) -> Importance | None:
        """Of a matrix; None where it is not newly rounded, or nothing is known. To be asked for once, in the order in
        which the model uses its matrices. Raises SourceError."""
        if self._calibration is None or name not in self._rounded:
            return None
        moments = self._calibration.moments(name)
        if self._latest is None or self._latest[0] is not moments:  # q, k and v have the same inputs
            self._latest = moments, Importance(moments)
        return self._latest[1] if self._latest[1].usable else None
