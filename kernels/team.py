"""A team of threads that runs programs: the caller's own and as many helpers as it takes.

Helpers sleep between runs and wait in compiled code within one (state.barrier), where passing from one operation to the
next costs a fraction of a microsecond: OpenMP costs 1.7, Numba's own pool 95.
"""

import threading
import time

import numpy as np

from .native import Library
from .records import RECORD, STATE_BYTES, WAITED, State, offsets
from .semaphores import Semaphores, clock_function, sleep_function, yield_function

PATIENCE = 1_000_000
"""Sleeps of 50 µs, each of which takes 70 to 110 in fact, until weights that do not come are given up."""

_PLACES = {name: (at - 8) // 8 for name, at in zip(State._fields, offsets(State), strict=True)}


class Program:
    """A list of operations, as the kernels read them."""

    def __init__(self) -> None:
        self._records: list[list[int]] = []
        self._array: np.ndarray | None = None

    def append(self, code: int, record: tuple[int, ...]) -> None:
        values = [code, *(int(v) for v in record)]
        self._records.append(values + [0] * (RECORD - len(values)))
        self._array = None

    @property
    def array(self) -> np.ndarray:
        """int64 of shape (operations, RECORD)."""
        if self._array is None:
            self._array = np.array(self._records, dtype=np.int64).reshape(-1, RECORD)
        return self._array


class Team:
    """`threads` threads, one of them the caller's. Only one run at a time."""

    def __init__(self, library: Library, threads: int) -> None:
        self._library = library
        self._memory = np.zeros(STATE_BYTES // 8 + 8, dtype=np.int64)
        skip = -self._memory.ctypes.data % 64 // 8
        self._state = self._memory[skip:skip + STATE_BYTES // 8]
        self._state_at = self._state.ctypes.data
        self._closed = False
        self._semaphores = Semaphores(threads - 1)
        self.set(threads=threads, yield_processor=yield_function(), signal=self._semaphores.signal,
                 wait=self._semaphores.wait, semaphores=self._semaphores.table.ctypes.data,
                 sleep=sleep_function(), clock=clock_function(), clock_id=time.CLOCK_MONOTONIC, patience=PATIENCE)
        self._helpers: list[threading.Thread] = []
        try:
            for i in range(1, threads):
                helper = threading.Thread(target=library.run, args=(0, 0, self._state_at, i), daemon=True,
                                          name=f"edgert-{i}")
                helper.start()
                self._helpers.append(helper)
        except BaseException:
            self.set(threads=len(self._helpers) + 1)
            self.close()
            raise

    def set(self, **values: int) -> None:
        """Set fields of records.State, between runs."""
        for name, value in values.items():
            self._state[_PLACES[name]] = value

    def run(self, program: np.ndarray) -> bool:
        """Run a program's array of records; whether all values stayed finite."""
        assert not self._closed
        self._state[_PLACES["error"]] = 0
        self._library.run(program.ctypes.data, len(program), self._state_at, 0)
        return not self._state[_PLACES["error"]]

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
        if not self._closed:
            self._closed = True
            self._library.run(0, -1, self._state_at, 0)
            for helper in self._helpers:
                helper.join()
