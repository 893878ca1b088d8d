"""The memory budget: what the user asks for, what is free now, what this process uses."""

import os
from typing import NamedTuple

import psutil

from edgert.control_groups import control_groups

_OF_FREE, _OF_LIMIT = 0.8, 0.97
"""Fractions that may be used: of free memory, which other programs want too, and of what a control group has left."""


def process_bytes() -> int:
    """Resident memory of this process now, including shared libraries, in bytes."""
    return int(psutil.Process().memory_info().rss)


class Allowance(NamedTuple):
    """How large this process may become.

    comfortable: bytes to plan with. most: bytes that may be used if a model needs them to run at all. what: names the
    limit in an error message.
    """

    comfortable: int
    most: int
    what: str


def allowance(asked: int | None) -> Allowance:
    """The budget: `asked` bytes, or by default what is free now, but never more than the limits of our control groups.

    The system kills a process that grows past such a limit, whatever it was asked to use.
    """
    own, groups = process_bytes(), list(control_groups())
    limits = [Allowance(limit, limit, "the control group's limit") for limit, _ in groups]
    if asked is not None:
        return min([Allowance(asked, asked, "a budget"), *limits])
    available = psutil.virtual_memory().available
    free = [Allowance(own + int(_OF_FREE * available), own + available, "the free memory"), *limits]
    for limit, used in groups:  # part of what is in use is ours, and not all that we use is counted in the group
        left = max(own + limit - used, 0)
        free.append(Allowance(int(_OF_LIMIT * left), left, "what is left in the control group"))
    most = min(free, key=lambda allowed: allowed.most)
    return most._replace(comfortable=min(allowed.comfortable for allowed in free))


def page_table_bytes(size: int) -> int:
    """Bytes of page tables that the kernel needs for `size` bytes of a process's memory, at most."""
    return size // (os.sysconf("SC_PAGE_SIZE") // 8)
