"""A control group of its own for a process: the kernel then keeps all its memory, page cache included, within a limit.

Both versions of the kernel's interface are known: version 2 (memory.max), and version 1 (memory.limit_in_bytes).
"""

import itertools
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from edgert.control_groups import own_control_groups
from edgert.errors import ModelError
from edgert.sizes import size_text

_NAME = re.compile(r"edgert-llama-(\d+)-\d+")
_COUNT = itertools.count()
_LEAVING_S = 2.0
"""Seconds that the kernel may take to take a process that has ended out of its group."""


class _Version(NamedTuple):
    """limit: the file of the limit. others: files that are written if they can be, and what. events: the file that
    counts kills. peak: that of the most memory that there was."""

    limit: str
    others: tuple[tuple[str, str], ...]
    events: str
    peak: str


_VERSIONS = {1: _Version("memory.limit_in_bytes", (("memory.swappiness", "0"),), "memory.oom_control",
                         "memory.max_usage_in_bytes"),
             2: _Version("memory.max", (("memory.swap.max", "0"), ("memory.oom.group", "0")), "memory.events",
                         "memory.peak")}


class ControlGroup:
    """A group with a limit in bytes, for one process. Raises ModelError where none can be made."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        problem = "there is no control group for memory here"
        for folder, version in _places():
            _remove_left_over(folder)
            self._folder, self._version = folder / f"edgert-llama-{os.getpid()}-{next(_COUNT)}", _VERSIONS[version]
            try:
                self._folder.mkdir()
                (self._folder / self._version.limit).write_text(str(limit))
                for name, value in self._version.others:
                    with suppress(OSError):
                        (self._folder / name).write_text(value)
                return
            except OSError as error:
                problem = f"{folder}: {(error.strerror or str(error)).lower()}"
                with suppress(OSError):
                    self._folder.rmdir()
        raise ModelError(f"llama.cpp runs this model, and edgert cannot keep it within --memory here ({problem}); "
                         "leave that away, or run as root or in a control group that may be divided")

    def lower(self, limit: int) -> None:
        """Set another limit, below that of before. Raises ModelError where more is in use."""
        try:
            (self._folder / self._version.limit).write_text(str(limit))
        except OSError:
            raise ModelError(f"llama.cpp's process needs more than {size_text(limit)}") from None
        self.limit = limit

    @property
    def processes(self) -> Path:
        """The file into which a process writes its number to join."""
        return self._folder / "cgroup.procs"

    @property
    def killed(self) -> bool:
        """Whether the kernel has ended a process in it because its memory was full."""
        with suppress(OSError):
            found = re.search(r"^oom_kill (\d+)", (self._folder / self._version.events).read_text(), re.MULTILINE)
            return found is not None and int(found[1]) > 0
        return False

    @property
    def peak(self) -> int:
        """The most bytes that were in use at any time."""
        return int((self._folder / self._version.peak).read_text())

    def remove(self) -> None:
        """Remove it, when its process has ended."""
        end = time.monotonic() + _LEAVING_S
        while time.monotonic() < end:
            try:
                self._folder.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.01)
            else:
                return


def _places() -> Iterator[tuple[Path, int]]:
    """Folders of groups in which one may be made so that it stays within every limit that we have, best first; and of
    which version they are."""
    for version, own in own_control_groups():
        if version == 1 or _divides_memory(own):
            yield own, version
        # Beside our own group, where that has no limit: a group with processes cannot be divided.
        elif own != Path("/sys/fs/cgroup") and _divides_memory(own.parent) and _text(own / "memory.max") == "max":
            yield own.parent, version


def _divides_memory(group: Path) -> bool:
    return "memory" in _text(group / "cgroup.subtree_control").split()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _remove_left_over(folder: Path) -> None:
    """Remove groups of programs that were killed before they could do that."""
    for group in folder.glob("edgert-llama-*"):
        found = _NAME.fullmatch(group.name)
        if found is not None and not Path(f"/proc/{found[1]}").exists():
            with suppress(OSError):
                group.rmdir()
