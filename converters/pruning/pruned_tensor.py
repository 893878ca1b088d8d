"""A pruned matrix, as a tensor to convert."""

import numpy as np

from edgert.converters.source import Grid, SourceTensor

from .scratch import Scratch


class PrunedTensor:
    """Implements source.SourceTensor. To be read after it has been put into the scratch file.

    values: whether it is there as values, or as what is kept of `tensor`.
    """

    def __init__(self, name: str, tensor: SourceTensor, scratch: Scratch, *, values: bool) -> None:
        self._name, self.before, self._scratch, self._values = name, tensor, scratch, values
        self.shape, self.type_name = tensor.shape, tensor.type_name

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop as float32: exactly 0 where pruned. Raises SourceError or BundleError."""
        if self._values:
            return self._scratch.read_values(self._name, start, stop)
        return self.before.read(start, stop) * self._scratch.read_kept(self._name, start, stop, self.shape[1])

    def grid(self, start: int, stop: int) -> Grid | None:
        """A grid need not have a 0."""
        return None
