"""The predictors of a sparse model in memory, set to leave out what is active with less than some probability."""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from edgert.bundle import Bundle, Header
from edgert.bundle.header import PREDICTORS, TENSOR_ALIGNMENT, NeuronLoss, predictor

from .region import Allocator, Region


class LoadedPredictors:
    """The section of predictors of a bundle whose header leaves out neurons. place: where it is in the region.
    allocator: reserves the room."""

    def __init__(self, header: Header, allocator: Allocator) -> None:
        assert isinstance(header.left_out, NeuronLoss)
        self._header, self._length = header, header.sections[PREDICTORS].length
        self._least = np.float32(NormalDist().inv_cdf(header.left_out.threshold))
        self.place = allocator.reserve(self._length, TENSOR_ALIGNMENT)

    def load(self, bundle: Bundle, region: Region, progress: Callable[[], None]) -> None:
        """Read and check it; a neuron whose score is then above zero is one that stays. progress: called before; what
        it raises ends loading. Raises BundleError."""
        progress()
        view = region.view(self.place, self._length)
        bundle.load_section(PREDICTORS, view)
        for layer in range(len(self._header.neurons)):
            bias = self._header.tensors[f"{predictor(layer)[1]}.bias"]
            np.frombuffer(view[bias.offset:bias.offset + bias.length], np.float32)[:] -= self._least
