"""What several processes could make at once is made by one of them, while the others wait."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def making(path: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Hold the right to make the file `path`; `waiting` is called, once, where another process holds it.

    Who had to wait should look whether the file is there now. The lock is the operating system's, on `.NAME.lock`
    beside the file, which stays; a process that is killed lets go of it. Raises OSError where that cannot be made.
    """
    from filelock import FileLock, Timeout  # not loaded where nothing has to be made
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
