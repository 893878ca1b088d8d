"""The memory budget: what the user asks for, what is free now, what this process uses."""

import os
import re
from typing import NamedTuple

import psutil

from edgert.control_groups import control_groups
from edgert.errors import ModelError

_OF_FREE, _OF_LIMIT = 0.8, 0.97
"""Fractions that may be used: of free memory, which other programs want too, and of what a control group has left."""
_LARGEST = 1 << 62


def parse_size(text: str) -> int:
    """The number of bytes that a text such as "600M", "1.5G" or "800MB" means.

    K, M and G are powers of 1024, as in the kernel, docker and systemd, and so are KiB, MiB and GiB; KB, MB and GB are
    powers of 1000. Raises ModelError.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?B)?|B)?\s*", text.upper())
    if not match:
        raise ModelError(f"{text!r} is not a size; write it like 600M or 1.5G")
    number, unit, suffix = match.groups()
    power = 0 if unit is None else "KMGT".index(unit) + 1
    size = float(number) * (1000 if suffix == "B" else 1024) ** power
    if size > _LARGEST:
        raise ModelError(f"{text[:20].strip()!r} is more memory than any machine has")
    return int(size)


def size_text(size: float) -> str:
    """A number of bytes for people to read: "600 MiB"."""
    return f"{size / (1 << 20):.0f} MiB" if size >= 10 << 20 else f"{size / (1 << 20):.1f} MiB"


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
