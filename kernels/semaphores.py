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
    """`count` semaphores at zero.

    post_address, wait_address: of the C functions that post one, and wait for one. table: the semaphores' own
    addresses, int64 of shape (count,).
    """

    def __init__(self, count: int) -> None:
        libc = ctypes.CDLL(None)
        if sys.platform == "darwin":
            create = libc.dispatch_semaphore_create
            create.restype, create.argtypes = ctypes.c_void_p, [ctypes.c_long]
            self.post_address = _address(libc.dispatch_semaphore_signal)
            self.wait_address = _address(libc.dispatch_semaphore_wait)
            self._try = self.wait_address  # with no time to wait
            self.table = np.array([create(0) for _ in range(count)], dtype=np.int64)
        else:
            self.post_address, self.wait_address = _address(libc.sem_post), _address(libc.sem_wait)
            self._try = _address(libc.sem_trywait)
            self._memory = np.zeros(count * _SEMAPHORE_BYTES, dtype=np.uint8)
            start = self._memory.ctypes.data
            self.table = np.array([start + i * _SEMAPHORE_BYTES for i in range(count)], dtype=np.int64)
            for semaphore in self.table.tolist():
                libc.sem_init(ctypes.c_void_p(semaphore), 0, 0)

    def post(self, index: int) -> None:
        """Add one to a semaphore, which lets one waiting thread go on."""
        _CALL(self.post_address)(self.table[index], -1)

    def wait(self, index: int) -> None:
        """Wait until a semaphore is above zero, without the GIL, and subtract one. A signal may end the wait early."""
        _CALL(self.wait_address)(self.table[index], -1)

    def drain(self, index: int) -> int:
        """Set a semaphore to zero without waiting; returns its value before that."""
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


def preadv_function() -> int:
    """The address of the C function preadv, whose offsets have 64 bits."""
    libc = ctypes.CDLL(None)
    return _address(getattr(libc, "preadv64", None) or libc.preadv)


def clock_function() -> int:
    """The address of the C function clock_gettime."""
    return _address(ctypes.CDLL(None).clock_gettime)
