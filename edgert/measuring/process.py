"""What this process takes from the operating system."""

import resource
import sys


def peak_rss_bytes() -> int:
    """The most memory that was resident at any time so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
