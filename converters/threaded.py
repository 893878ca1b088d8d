"""Work on the rows of arrays, shared among threads."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


def threaded(function: Any, rows: Sequence[np.ndarray], *whole: Any) -> None:
    """Call function(*rows, *whole) in threads, each with a part of every array in `rows` and all of what is whole."""
    threads = os.cpu_count() or 1
    cuts = np.linspace(0, len(rows[0]), threads + 1).astype(int)

    def part(start: int, stop: int) -> None:
        function(*(array[start:stop] for array in rows), *whole)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, cuts[:-1], cuts[1:]))
