"""Sizes as users write them, and what a control group allows."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgert import ModelError
from edgert import control_groups as groups_module
from edgert.memory import budget
from edgert.memory.budget import allowance, process_bytes
from edgert.sizes import parse_size, size_text


@pytest.mark.parametrize(("text", "size"), [
    ("600M", 600 << 20), ("600m", 600 << 20), ("600MiB", 600 << 20), ("600MB", 600_000_000), ("1.5G", 3 << 29),
    ("2GB", 2_000_000_000), (" 64 K ", 64 << 10), ("123456789", 123456789), ("123B", 123), ("1T", 1 << 40)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "10X", "-5", "1e9", "600 MM", "1,5G", "0x10", "five", "1.5.2G", "1iB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ModelError, match=r"is not a size; write it like 600M or 1\.5G"):
        parse_size(text)


def test_size_text() -> None:
    assert size_text(600 << 20) == "600 MiB" and size_text(3 << 19) == "1.5 MiB"


def test_this_process() -> None:
    assert 10 << 20 < process_bytes() < 4 << 30
    free = allowance(None)
    assert 0 <= free.comfortable <= free.most


MIB = 1 << 20


@pytest.mark.parametrize(("asked", "groups", "expected"), [
    (100, [], (100, 100, "a budget")),
    (100, [(200, 0)], (100, 100, "a budget")),
    (100, [(100, 0)], (100, 100, "a budget")),
    (300, [(400, 0), (200, 190)], (200, 200, "the control group's limit")),
    (None, [], (50 + 800, 50 + 1000, "the free memory")),
    # Pages that others had in memory first are ours, but on their group's account: 50, where the group counts 10.
    (None, [(80, 10)], (80, 80, "the control group's limit")),
    (None, [(200, 100)], (145, 150, "what is left in the control group")),
    (None, [(5000, 10)], (850, 1050, "the free memory")),
    (None, [(80, 200)], (0, 0, "what is left in the control group")),
    (None, [(2000, 1050), (600, 150)], (485, 500, "what is left in the control group")),
])
def test_allowance(monkeypatch: pytest.MonkeyPatch, asked: int | None, groups: list[tuple[int, int]],
                   expected: tuple[int, int, str]) -> None:
    """A process of 50 MiB, where 1000 are free; limits and use of its control groups, in MiB."""
    monkeypatch.setattr(budget, "process_bytes", lambda: 50 * MIB)
    monkeypatch.setattr(budget.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000 * MIB))
    monkeypatch.setattr(budget, "control_groups", lambda: iter([(a * MIB, b * MIB) for a, b in groups]))
    found = allowance(None if asked is None else asked * MIB)
    assert (found.comfortable // MIB, found.most // MIB, found.what) == expected


def fake_group(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def limits(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[tuple[int, int]]:
    """What is found where /proc and /sys are below `root`."""
    class Rooted(type(Path())):  # type: ignore[misc]
        def __new__(cls, *parts: object) -> Path:
            first = os.fspath(parts[0])  # type: ignore[arg-type]
            return Path(str(root) + first) if first.startswith("/") else Path(*map(str, parts))

    monkeypatch.setattr(groups_module, "Path", Rooted)
    return list(groups_module.control_groups())


def test_control_group_2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A limited one inside a limited one inside one without; cache that can be dropped is not in use."""
    fake_group(tmp_path, {
        "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/memory.max": "max\n",
        "sys/fs/cgroup/a/memory.max": "5000\n", "sys/fs/cgroup/a/memory.current": "4000\n",
        "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 1500\n",
        "sys/fs/cgroup/a/b/memory.max": "3000\n", "sys/fs/cgroup/a/b/memory.current": "1000\n"})
    assert limits(monkeypatch, tmp_path) == [(3000, 1000), (5000, 2500)]


def test_control_group_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = "sys/fs/cgroup/memory"
    fake_group(tmp_path, {
        "proc/self/cgroup": "12:cpu,cpuacct:/x\n4:memory:/limit-1\n0::/\n",
        f"{base}/limit-1/memory.limit_in_bytes": "700\n", f"{base}/limit-1/memory.usage_in_bytes": "100\n",
        f"{base}/memory.limit_in_bytes": f"{(1 << 63) - 4096}\n", f"{base}/memory.usage_in_bytes": "9\n"})
    assert limits(monkeypatch, tmp_path) == [(700, 100)]


def test_no_control_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert limits(monkeypatch, tmp_path) == []
