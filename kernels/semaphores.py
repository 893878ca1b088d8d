"""What compiled code asks of the operating system, as addresses of C functions: semaphores (POSIX, or libdispatch on
macOS), giving the processor away, sleeping, the time."""

import ctypes
import sys

import numpy as np

_SEMAPHORE_BYTES = 64
"""More than any sem_t takes."""


def _address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


class Semaphores:
    """`count` semaphores at zero. signal, wait: addresses of the C functions; table: int64, the semaphores' own."""

    def __init__(self, count: int) -> None:
        libc = ctypes.CDLL(None)
        if sys.platform == "darwin":
            create = libc.dispatch_semaphore_create
            create.restype, create.argtypes = ctypes.c_void_p, [ctypes.c_long]
            self.signal, self.wait = _address(libc.dispatch_semaphore_signal), _address(libc.dispatch_semaphore_wait)
            self._try = self.wait  # with no time to wait
            self.table = np.array([create(0) for _ in range(count)], dtype=np.int64)
        else:
            self.signal, self.wait = _address(libc.sem_post), _address(libc.sem_wait)
            self._try = _address(libc.sem_trywait)
            self._memory = np.zeros(count * _SEMAPHORE_BYTES, dtype=np.uint8)
            start = self._memory.ctypes.data
            self.table = np.array([start + i * _SEMAPHORE_BYTES for i in range(count)], dtype=np.int64)
            for semaphore in self.table.tolist():
                libc.sem_init(ctypes.c_void_p(semaphore), 0, 0)

    def raise_(self, index: int) -> None:
        """Raise a semaphore by one."""
        _CALL(self.signal)(self.table[index], -1)

    def lower(self, index: int) -> None:
        """Wait until a semaphore is above zero, without the GIL, and lower it; may come back early, by a signal."""
        _CALL(self.wait)(self.table[index], -1)

    def drain(self, index: int) -> int:
        """Lower a semaphore to zero without waiting; from how much."""
        count = 0
        while _TRY(self._try)(self.table[index], 0) == 0:
            count += 1
        return count


_TRY = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_int64)
_CALL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)


def yield_function() -> int:
    """The address of the C function that lets another thread run."""
    return _address(ctypes.CDLL(None).sched_yield)


def sleep_function() -> int:
    """The address of the C function that waits so many microseconds."""
    return _address(ctypes.CDLL(None).usleep)


def clock_function() -> int:
    """The address of the C function clock_gettime."""
    return _address(ctypes.CDLL(None).clock_gettime)
