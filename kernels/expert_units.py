"""How the experts of a layer stand in a bundle: each is a run of units, a unit some of its groups of 32 neurons.

A unit is what is read and checked at once: whole groups (groups.py), then the down projection's tile headers, where its
format has some, which are of this unit's columns alone; then zeros to a whole page. So a unit is computed without any
other, and its part of the result is a sum of its own.
"""

from typing import NamedTuple, Self

from .formats import BLOCK, TILE, Format
from .groups import group_layout

PAGE = 4096
"""Bytes."""
UNIT_BYTES = 1 << 20
"""A unit has as many groups as fit, and at least one: a disk reads what is much smaller more slowly (docs/notes/
experts.md)."""


class ExpertUnits(NamedTuple):
    """The units of an expert. per_expert: how many. groups: in the expert. in_unit: groups in each, the last may have
    fewer. headers: where in a unit the tile headers of the down projection begin. group_bytes, unit_bytes: lengths."""

    per_expert: int
    groups: int
    in_unit: int
    group_bytes: int
    headers: int
    unit_bytes: int

    @classmethod
    def of(cls, hidden_size: int, neurons: int, gate_up: Format, down: Format, count: int | None = None) -> Self:
        """Of experts with so many neurons. count: None for as many as UNIT_BYTES asks for."""
        groups, group_bytes = -(-neurons // BLOCK), group_layout(hidden_size, gate_up, down).whole.length
        if count is None:
            count = -(-groups // max(UNIT_BYTES // group_bytes, 1))
        in_unit = -(-groups // count)
        headers = in_unit * group_bytes
        return cls(-(-groups // in_unit), groups, in_unit, group_bytes, headers,
                   -(-(headers + -(-hidden_size // TILE) * down.header_bytes) // PAGE) * PAGE)

    def groups_of(self, unit: int) -> int:
        """How many groups a unit has."""
        return min(self.in_unit, self.groups - unit * self.in_unit)
