"""Control groups: how much memory this process may use, by those of them that it is in."""

from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 1 << 60


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


def control_groups() -> Iterator[tuple[int, int]]:
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
