"""A team of threads that runs programs: the caller's own and as many helpers as it takes.

Helpers sleep between runs and wait in compiled code within one (state.barrier), where passing from one operation to the
next costs a fraction of a microsecond: OpenMP costs 1.7, Numba's own pool 95.
"""

import threading
import time
import weakref

import numpy as np

from .native import Library
from .records import RECORD, STATE, STATE_BYTES, WAITED, Code
from .semaphores import Semaphores, clock_function, sleep_function, yield_function

PATIENCE_NS = 90_000_000_000
"""Until weights that do not come are given up."""

_PLACES = {name: at // 8 for name, at in STATE._asdict().items()}


class Program:
    """A list of operations, as the kernels read them."""

    def __init__(self) -> None:
        self._records: list[list[int]] = []
        self._array: np.ndarray | None = None

    def append(self, code: Code, record: tuple[int, ...]) -> int:
        """Add an operation; its number."""
        values = [int(code), *(int(v) for v in record)]
        self._records.append(values + [0] * (RECORD - len(values)))
        self._array = None
        return len(self._records) - 1

    def amend(self, number: int, offset: int, value: int) -> None:
        """Set an argument of an operation that was added; offset: as records.LINEAR.x and its like."""
        self._records[number][offset // 8] = value
        self._array = None

    @property
    def array(self) -> np.ndarray:
        """int64 of shape (operations, RECORD)."""
        if self._array is None:
            self._array = np.array(self._records, dtype=np.int64).reshape(-1, RECORD)
        return self._array


class Team:
    """`threads` threads, one of them the caller's. Only one run at a time.

    A team that is let go ends its helpers by itself; what they look at lives as long as they do.
    """

    def __init__(self, library: Library, threads: int) -> None:
        self._library = library
        self._memory = np.zeros(STATE_BYTES // 8 + 8, dtype=np.int64)
        skip = -self._memory.ctypes.data % 64 // 8
        self._state = self._memory[skip:skip + STATE_BYTES // 8]
        self._state_at = self._state.ctypes.data
        self._semaphores = Semaphores(threads - 1)
        self._never = np.zeros(1, np.int64)
        self.set(threads=threads, yield_processor=yield_function(), signal=self._semaphores.post_address,
                 wait=self._semaphores.wait_address, semaphores=self._semaphores.table.ctypes.data,
                 sleep=sleep_function(), clock=clock_function(), clock_id=time.CLOCK_MONOTONIC, patience=PATIENCE_NS,
                 cancelled=self._never.ctypes.data)
        self._helpers: list[threading.Thread] = []
        self._end = weakref.finalize(self, _end_helpers, library, self._state_at, self._helpers)
        self._end.atexit = False
        kept = (self._memory, self._semaphores, self._never)
        for i in range(1, threads):
            helper = threading.Thread(target=_help, args=(library, self._state_at, i, kept), daemon=True,
                                      name=f"edgert-{i}")
            self._helpers.append(helper)
            helper.start()

    def set(self, **values: int) -> None:
        """Set fields of records.State, between runs."""
        for name, value in values.items():
            self._state[_PLACES[name]] = value

    def run(self, program: np.ndarray) -> bool:
        """Run a program's array of records; whether all values stayed finite."""
        assert self._end.alive, "the team has been closed"
        self._state[_PLACES["error"]] = 0
        self._library.run(program.ctypes.data, len(program), self._state_at, 0)
        return not self._state[_PLACES["error"]]

    def cancellable(self, flag: np.ndarray | None) -> None:
        """End the coming runs when `flag`, int64 of shape (1,), becomes CANCELLED; None for never."""
        self._flag = self._never if flag is None else flag
        self.set(cancelled=self._flag.ctypes.data)

    @property
    def stopped(self) -> int:
        """records.State.stopped, after a run."""
        return int(self._state[_PLACES["stopped"]])

    @property
    def waited_s(self) -> float:
        """Seconds that the caller's thread has waited for weights, in all runs."""
        return float(self._state[WAITED // 8]) / 1e9

    def close(self) -> None:
        """End the helpers."""
        self._end()
        for helper in self._helpers:
            if helper.ident is not None:
                helper.join()


def _help(library: Library, state_at: int, number: int, kept: object) -> None:
    """A helper's thread. kept: what `state_at` and the state point to."""
    library.run(0, 0, state_at, number)


def _end_helpers(library: Library, state_at: int, helpers: list[threading.Thread]) -> None:
    """Tell them to end. The state is there as long as one of them is."""
    if any(helper.is_alive() for helper in helpers):
        library.run(0, -1, state_at, 0)
