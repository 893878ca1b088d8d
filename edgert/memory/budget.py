"""The memory budget: what the user asks for, what is free now, what this process uses."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from edgert.errors import ModelError

_OF_FREE, _OF_LIMIT = 0.8, 0.97
"""Fractions that may be used: of free memory, which other programs want too, and of what a control group has left."""
_NO_LIMIT = 1 << 60
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
    own, groups = process_bytes(), list(_control_groups())
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


def own_control_groups() -> Iterator[tuple[int, Path]]:
    """Version of the kernel's interface and folder of each memory control group that we are in."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            version = 1 if controllers else 2
            yield version, _base(version) / path.lstrip("/")


def _base(version: int) -> Path:
    return Path("/sys/fs/cgroup/memory" if version == 1 else "/sys/fs/cgroup")


def _control_groups() -> Iterator[tuple[int, int]]:
    """Limit and use (without cache that can be dropped) of each memory control group with a limit that we are in."""
    for version, folder in own_control_groups():
        limit_name, use_name, cache = "memory.max", "memory.current", "inactive_file"
        if version == 1:
            limit_name, use_name, cache = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        while folder != _base(version).parent:
            limit, used = _number(folder / limit_name), _number(folder / use_name)
            if limit is not None and used is not None and limit < _NO_LIMIT:
                yield limit, max(used - _statistic(folder / "memory.stat", cache), 0)
            folder = folder.parent


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def _statistic(path: Path, name: str) -> int:
    try:
        fields = dict(line.split() for line in path.read_text().splitlines())
        return int(fields.get(name, 0))
    except (OSError, ValueError):
        return 0


def page_table_bytes(size: int) -> int:
    """Bytes of page tables that the kernel needs for `size` bytes of a process's memory, at most."""
    return size // (os.sysconf("SC_PAGE_SIZE") // 8)
