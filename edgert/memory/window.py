"""How a plan divides the window of neuron groups of a sparse model, or its cache of experts, and what it expects of it.
"""

from collections.abc import Mapping

from edgert.bundle import Header
from edgert.bundle.header import ACTIVITY_PARTS, ExpertLoss, NeuronLoss
from edgert.residency.device import Device
from edgert.residency.on_demand import READERS

_STEPS = 32
"""Into which a budget is divided between a window and what every token needs, to find the best."""
_EXPERTS = 2
_LEAST_S = 6e-5
"""Seconds for each of these reads where a layer asks for some tens, measured (docs/notes/sparse.md): mostly Python."""
_WITH_WRONG_GUESSES = 1.1
"""Bytes of experts that are read for those that are needed: 1.08 and 1.11 were measured (docs/notes/experts.md)."""


def least_slots(header: Header) -> dict[int, int]:
    """For groups, or experts, of each size, in bytes, the fewest slots: as many as a layer has groups, since new tokens
    may need all of them at once; of experts, which may be used in turns, two: one to compute and one to read."""
    found: dict[int, int] = {}
    for n in header.neurons:
        count, size = n.choices(header.config)
        found[size] = max(found.get(size, 0), min(count, _EXPERTS) if header.config.experts else count)
    return found


def slots_in(header: Header, size: int) -> dict[int, int]:
    """For groups of each size, in bytes, how many slots to make of `size` bytes: at least the fewest, no more than
    there are groups, and for layers of each size the same part of their groups."""
    least, every = least_slots(header), _groups(header)
    whole = window_bytes(every)
    slots = {unit: max(min(size * count // whole, count), least[unit]) for unit, count in every.items()}
    for unit in sorted(slots, key=lambda unit: slots[unit] - least[unit], reverse=True):
        over = max(window_bytes(slots) - size, 0)
        slots[unit] = max(slots[unit] - -(-over // unit), least[unit])
    return slots


def candidates(header: Header, most: int) -> list[dict[int, int]]:
    """Windows of several sizes, from the smallest to one of `most` bytes."""
    least = window_bytes(least_slots(header))
    sizes = [least + (most - least) * step // _STEPS for step in range(_STEPS + 1)] if most > least else [least]
    return [slots_in(header, size) for size in sizes]


def window_bytes(slots: Mapping[int, int]) -> int:
    """What so many slots of each size take."""
    return sum(unit * count for unit, count in slots.items())


def holds_all(header: Header, slots: Mapping[int, int]) -> bool:
    """Whether there are slots for all groups."""
    return slots == _groups(header)


def expected_bytes(header: Header, slots: Mapping[int, int]) -> int:
    """Bytes of groups that are expected to be read for a token, as was seen while converting: those that it needs and
    does not find, and of experts also those that are guessed and not needed."""
    return round(_missing(header, slots) * (_WITH_WRONG_GUESSES if header.config.experts else 1))


def expected_hits(header: Header, slots: Mapping[int, int]) -> float:
    """The part of the experts that a token needs that is expected to be in memory."""
    left_out = header.left_out
    per_token = left_out.experts if isinstance(left_out, ExpertLoss) else header.config.experts_per_token
    needed = per_token * sum(n.choices(header.config)[1] for n in header.neurons)
    return max(1 - _missing(header, slots) / needed, 0.0)


def _missing(header: Header, slots: Mapping[int, int]) -> float:
    """Bytes of groups that a token is expected to need and not to find; where experts are left out, in proportion to
    what that was with a quarter of all in memory."""
    every, total, left_out = _groups(header), 0.0, header.left_out
    for n, activity in zip(header.neurons, header.activity, strict=True):
        count, size = n.choices(header.config)
        if isinstance(left_out, NeuronLoss):
            activity = left_out.misses
        there = ACTIVITY_PARTS * slots[size] / every[size]
        before, after = ([*activity, 0, 0][int(there) + i] for i in range(2))
        total += (before + (after - before) * (there % 1)) / 10000 * count * size
    return total * left_out.missed if isinstance(left_out, ExpertLoss) else total


def reading_s(header: Header, slots: Mapping[int, int], disk: Device) -> float:
    """Seconds that reading them takes. They, and the units of experts, are read one by one, at random places."""
    unit = max(n.group_bytes for n in header.neurons)
    each = unit / disk.bandwidth + max(disk.latency_s / READERS, _LEAST_S)
    return expected_bytes(header, slots) / unit * each


def _groups(header: Header) -> dict[int, int]:
    found: dict[int, int] = {}
    for n in header.neurons:
        count, size = n.choices(header.config)
        found[size] = found.get(size, 0) + count
    return found
