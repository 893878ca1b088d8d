"""A layer's neuron groups that stay in memory: first whole ones, then those of which only the base plane stays.

A bundle has the planes of a group in two sections (docs/bundle-format.md). Where both stay they are put together while
they are loaded: whole groups are computed fastest.
"""

from collections.abc import Callable

import numpy as np

from edgert.bundle import Neurons
from edgert.bundle.reader import Units
from edgert.kernels.formats import FORMATS, TILE
from edgert.kernels.groups import group_layout, row_tiles_of
from edgert.kernels.native import Library
from edgert.kernels.records import Code, Join
from edgert.kernels.team import Program, Team
from edgert.models.config import Config

from .file import ALIGNMENT, FlashFile, aligned
from .region import Allocator, Region

_PIECE = 1 << 20
"""Bytes of a plane to read at once."""


class PinnedGroups:
    """The first groups of a layer, `bases` with at least their base plane, of these `details` with both planes.

    base, detail: the layer's units; detail is None where groups are not split. allocator: reserves the room.
    """

    def __init__(self, neurons: Neurons, config: Config, base: Units, detail: Units | None, bases: int, details: int,
                 allocator: Allocator) -> None:
        assert details <= bases
        self._base, self._detail, self._tiles = base, detail, -(-config.hidden_size // TILE)
        self._row_tiles = row_tiles_of(gated=config.gated)
        self._gate_up, self._down = FORMATS[neurons.gate_up], FORMATS[neurons.down]
        self._blocks = self._gate_up.blocks(config.hidden_size)
        self._length = group_layout(config.hidden_size, self._gate_up, self._down, gated=config.gated).whole.length
        self._joined, self._bases = details, bases
        self._joined_place = allocator.reserve(details * self._length)
        self._part = base.start(details), base.start(bases)
        self._range = aligned(*self._part)
        self._place = allocator.reserve(self._range[1] - self._range[0], ALIGNMENT) if bases > details else 0

    def addresses(self, region: Region) -> np.ndarray:
        """Where each of the groups is: int64."""
        joined = region.address + self._joined_place + self._length * np.arange(self._joined, dtype=np.int64)
        first = region.address + self._place + self._part[0] - self._range[0]
        return np.concatenate([joined, first + self._base.unit_bytes * np.arange(self._bases - self._joined)])

    def load(self, file: FlashFile, region: Region, library: Library, progress: Callable[[], None]) -> None:
        """Read and check them. progress: called before each piece; what it raises ends loading. Raises BundleError."""
        if self._joined:
            self._load_joined(file, region, library, progress)
        start, end = self._range
        if self._bases > self._joined:
            view = region.view(self._place, end - start)
            read_units(file, self._base, self._joined, self._bases, view, progress)

    def _load_joined(self, file: FlashFile, region: Region, library: Library, progress: Callable[[], None]) -> None:
        assert self._detail is not None
        planes = (self._base, self._detail)
        at_once = max(_PIECE // max(units.unit_bytes for units in planes), 1)
        room = [(at_once * units.unit_bytes // ALIGNMENT + 2) * ALIGNMENT for units in planes]
        pieces, team = Region(sum(room), "loading"), Team(library, 1)
        try:
            for first in range(0, self._joined, at_once):
                last, addresses = min(first + at_once, self._joined), []
                for units, at in zip(planes, (0, room[0]), strict=True):
                    start, end = aligned(units.start(first), units.start(last))
                    read_units(file, units, first, last, pieces.view(at, end - start), progress)
                    addresses.append(pieces.address + at + units.start(first) - start)
                program = Program()
                program.append(Code.JOIN, Join(
                    last - first, self._gate_up.code, self._blocks, self._down.code, self._tiles, addresses[0],
                    self._base.unit_bytes, addresses[1], self._detail.unit_bytes,
                    region.address + self._joined_place + first * self._length, self._length, self._row_tiles))
                team.run(program.array)
        finally:
            team.close()
            pieces.close()


def read_units(file: FlashFile, units: Units, first: int, last: int, view: memoryview,
               progress: Callable[[], None]) -> None:
    """Read units first to last, with what stands around them up to aligned offsets, and check them. Raises BundleError.

    progress: called before each piece.
    """
    start, end = aligned(units.start(first), units.start(last))[0], units.start(last)
    assert len(view) >= end - start

    def attempt() -> None:
        for at in range(0, len(view), _PIECE):
            progress()
            stop = min(at + _PIECE, len(view))
            file.read(start + at, view[at:stop], min(stop, end - start) - at)
        units.check_all(first, (slice(units.start(unit) - start, units.start(unit + 1) - start)
                                for unit in range(first, last)), view)

    file.twice(attempt)
