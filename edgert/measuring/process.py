"""What this process uses."""

import resource
import sys
from pathlib import Path


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
