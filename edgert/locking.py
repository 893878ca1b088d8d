"""A file that several processes want to make is made by one of them, while the others wait."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def making(path: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Hold the lock for making the file `path`. `waiting` is called once if another process holds it.

    A process that had to wait should check whether the file is there now. The lock is the operating system's, on a file
    `.NAME.lock` beside `path`, which stays; it is released if the process is killed. Raises OSError if the lock file
    cannot be made.
    """
    from filelock import FileLock, Timeout  # imported only if something has to be made
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
