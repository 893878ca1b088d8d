"""The predictors of a sparse model in memory, set to leave out what is active with less than some probability."""

from collections.abc import Callable

import numpy as np
import xxhash

from edgert.bundle import Header
from edgert.bundle.header import PREDICTORS, NeuronLoss, predictor, score_of
from edgert.bundle.reader import damaged

from .file import ALIGNMENT, FlashFile
from .region import Allocator, Region

_PIECE = 1 << 20
"""Bytes to read at once."""


class LoadedPredictors:
    """The section of predictors of a bundle whose header leaves out neurons. place: where it is in the region.
    allocator: reserves the room."""

    def __init__(self, header: Header, allocator: Allocator) -> None:
        assert isinstance(header.left_out, NeuronLoss)
        self._header, self._section = header, header.sections[PREDICTORS]
        self._least = np.float32(score_of(header.left_out.threshold))
        self._room = -(-self._section.length // ALIGNMENT) * ALIGNMENT
        self.place = allocator.reserve(self._room, ALIGNMENT)

    def load(self, file: FlashFile, region: Region, progress: Callable[[], None]) -> None:
        """Read and check it, once more if need be; a neuron whose score is then above zero is one that stays. progress:
        called before each piece; what it raises ends it. Raises BundleError."""
        view, length = region.view(self.place, self._room), self._section.length

        def attempt() -> None:
            for at in range(0, length, _PIECE):
                progress()
                stop = min(at + _PIECE, self._room)
                file.read(self._section.offset + at, view[at:stop], min(stop, length) - at)
            if xxhash.xxh3_64_hexdigest(view[:length]) != self._section.checksum:
                raise damaged(file.path, f"section {PREDICTORS!r}", self._section.offset)

        file.twice(attempt)
        for layer in range(len(self._header.neurons)):
            bias = self._header.tensors[f"{predictor(layer)[1]}.bias"]
            np.frombuffer(view[bias.offset:bias.offset + bias.length], np.float32)[:] -= self._least
