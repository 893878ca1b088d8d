"""What this process uses, and may use."""

import os
import resource
import sys
from pathlib import Path

import psutil


def default_threads() -> int:
    """The number of physical cores that this process may run on."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:
        allowed = os.cpu_count() or 1
    return max(min(psutil.cpu_count(logical=False) or allowed, allowed), 1)


def peak_rss_bytes() -> int:
    """The most memory, in bytes, that was resident at any time since this program started.

    On Linux from /proc: getrusage also counts what the process was before exec.
    """
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
