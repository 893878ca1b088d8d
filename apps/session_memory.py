"""The memory that all processes of one session take, as the kernel counts it."""

import os

import psutil


def session_memory(leader: int) -> int:
    """Bytes that the processes take which belong to the session of the process `leader`, also those that their parents
    have left. Where the kernel says so and we may know it, of what several processes share each counts its part
    (PSS, on Linux); else each counts all that is resident."""
    total = 0
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader:
                total += _bytes_of(psutil.Process(pid))
        except (OSError, psutil.Error):  # it has ended
            continue
    return total


def _bytes_of(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (AttributeError, psutil.AccessDenied):  # not Linux; or a process that has shut itself in
        return int(process.memory_info().rss)
