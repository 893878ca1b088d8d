"""Which of the weights stay where not all do: phase by phase, and within one spread evenly, so that the disk is always
busy."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from edgert.bundle.header import UnitLayout
from edgert.residency import stream


def spread_in_turn(phases: Iterable[Sequence[UnitLayout]], left: int, chunk_bytes: int) -> dict[str, int]:
    """How many units of each to pin in `left` bytes: those of a phase before those of the next. A layout may be cut
    among several phases."""
    pinned: dict[str, int] = {}
    for layouts in phases:
        for name, count in _spread(layouts, left, chunk_bytes).items():
            pinned[name] = pinned.get(name, 0) + count
        left -= length_of(layouts)
    return pinned


def cut_at(layout: UnitLayout, count: int) -> tuple[UnitLayout, UnitLayout]:
    """The first `count` units, and the others."""
    rest = layout.bytes_of(count)
    return (replace(layout, count=count, length=layout.length - rest),
            replace(layout, count=layout.count - count, length=rest))


def length_of(layouts: Iterable[UnitLayout]) -> int:
    """Bytes of all units."""
    return sum(layout.length for layout in layouts)


def bytes_pinned(layouts: Iterable[UnitLayout], pinned: Mapping[str, int]) -> int:
    return sum(layout.length - layout.bytes_of(pinned[layout.name]) for layout in layouts)


def _spread(layouts: Sequence[UnitLayout], left: int, chunk_bytes: int) -> dict[str, int]:
    """How many units of each to pin in `left` bytes: so that what is streamed of any first few of them is as large a
    part of them as of all, and makes whole runs if possible."""
    length, left = length_of(layouts), max(left, 0)
    share = 1 - min(left / length, 1.0) if length else 0.0
    pinned, wanted, streamed = {}, 0.0, 0
    for layout in layouts:
        wanted += share * layout.length
        run = stream.run_units(layout.unit_bytes, chunk_bytes)
        first = layout.count
        while first > 0 and streamed + layout.bytes_of(first) < wanted:
            first = max(first - run, 0)
        pinned[layout.name] = first
        streamed += layout.bytes_of(first)
    # Rounding to runs must not have pinned too much.
    for layout in reversed(layouts):
        while length - streamed > left and pinned[layout.name]:
            streamed -= layout.bytes_of(pinned[layout.name])
            pinned[layout.name] -= 1
            streamed += layout.bytes_of(pinned[layout.name])
    return pinned
