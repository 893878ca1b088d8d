"""Many small reads in one call, whose pieces go wherever there is room: what a small read costs is Python's, and what
threads of Python cost each other (docs/notes/sparse.md)."""

import struct
from collections.abc import Sequence

import numpy as np

from edgert.kernels.native import Library
from edgert.kernels.records import Code, ReadPieces
from edgert.kernels.semaphores import preadv_function
from edgert.kernels.team import Program, Team

MOST = 16
"""Pieces at once."""
_RUN, _PIECE = 4, 2
"""Numbers of 8 bytes that a run and a piece have (kernels.records.ReadPieces)."""


class ScatteredReader:
    """Reads for one thread at a time."""

    def __init__(self, library: Library) -> None:
        self._team = Team(library, 1)
        self._memory = np.zeros((_RUN + _PIECE) * MOST, np.int64)
        """Runs, and behind them pieces."""
        self._bytes, self._at = self._memory.data.cast("B"), self._memory.ctypes.data
        self._pieces = self._at + 8 * _RUN * MOST
        program = Program()
        program.append(Code.READ, ReadPieces(preadv_function(), 0, self._at, 0))
        self._program = program.array

    def read(self, handle: int, offsets: Sequence[int], addresses: Sequence[int], size: int) -> list[int]:
        """Read up to MOST pieces of `size` bytes from a file into memory, neighbours with one call to the system. Which
        of them were not read; the system has not said why. offsets: they rise."""
        runs: list[int] = []
        counts: list[int] = []
        after = -1
        for number, offset in enumerate(offsets):
            if offset == after:
                counts[-1] += 1
            else:
                runs.append(number)
                counts.append(1)
            after = offset + size
        values = [value for first, count in zip(runs, counts, strict=True)
                  for value in (offsets[first], self._pieces + 8 * _PIECE * first, count, 0)]
        struct.pack_into(f"{len(values)}q", self._bytes, 0, *values)
        pieces = [value for address in addresses for value in (address, size)]
        struct.pack_into(f"{len(pieces)}q", self._bytes, 8 * _RUN * MOST, *pieces)
        self._program[0, 2], self._program[0, 4] = handle, len(runs)
        self._team.run(self._program)
        read = struct.unpack_from(f"{len(values)}q", self._bytes)[3::_RUN]
        return [number for first, count, done in zip(runs, counts, read, strict=True) if done != size * count
                for number in range(first, first + count)]

    def close(self) -> None:
        self._team.close()
