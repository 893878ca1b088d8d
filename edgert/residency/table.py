"""The address table: where the kernels find weights, whoever put them there."""

from collections.abc import Mapping

import numpy as np

from edgert.kernels.records import WAIT


class AddressTable:
    """An entry and a counter for every unit that can be streamed: a neuron group, or a slab of a matrix.

    entries: int64, a unit's address; or WAIT until it has one; or, of neuron groups, ABSENT if it takes no part now
    (kernels/records.py).
    counters: int64, the address of what the kernel lowers by one when it is done with the unit and has put WAIT back;
    or 0 for a unit that stays. A thread that sees an address must see its counter too. counts: how many units there
    are, by name (header.UnitLayout), in the order of use.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        ends = np.cumsum([0, *counts.values()]).tolist()
        self._first = dict(zip(counts, ends, strict=False))
        self.entries, self.counters = np.full(ends[-1], WAIT, np.int64), np.zeros(ends[-1], np.int64)

    def index(self, name: str, unit: int = 0) -> int:
        """Where a unit's entry and counter are."""
        return self._first[name] + unit

    def addresses(self, name: str) -> tuple[int, int]:
        """The addresses of the entries and of the counters of the units of this name."""
        at = 8 * self._first[name]
        return self.entries.ctypes.data + at, self.counters.ctypes.data + at
