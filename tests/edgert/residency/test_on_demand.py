"""Readers that call one another: whatever is asked for is read, by as many as there is work for."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from edgert.errors import BundleError
from edgert.residency.on_demand import READERS, OnDemand

PATIENCE_S = 20.0


class Made(OnDemand[int]):
    """Reads numbers: `read` is called with each."""

    def __init__(self, read: Callable[[int], object]) -> None:
        super().__init__(cast(Any, None), cast(Any, None), [], lambda: None)
        self.jobs: deque[int] = deque()
        self.read = read
        self._start(READERS, "made")

    def ask(self, *jobs: int) -> None:
        """As a kernel does: whatever it asks for, the semaphore is raised by one."""
        with self._lock:
            self.jobs.extend(jobs)
        self._semaphores.post(0)

    def _take(self) -> tuple[int | None, int]:
        return (self.jobs.popleft() if self.jobs else None), len(self.jobs)

    def _read(self, reader: int, job: int) -> None:
        self.read(job)

    def expect(self, heads: int) -> None:
        pass

    def restart(self) -> None:
        """As Window has it."""
        with self._quiet:
            self.jobs.clear()
            assert self._wait_until_quiet()
        self.check()

    @property
    def idle(self) -> bool:
        with self._lock:
            return not (self._awake or self._called or self._under_way or self.jobs)


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


@pytest.fixture
def made() -> Iterator[Callable[[Callable[[int], object]], Made]]:
    sources: list[Made] = []
    yield lambda read: sources.append(Made(read)) or sources[-1]  # type: ignore[func-returns-value]
    for source in sources:
        source.close()
        assert not any(thread.is_alive() for thread in source._threads)


def test_one_that_is_called_calls_all_others(made: Callable[..., Made]) -> None:
    """So much is read at once as there are readers, and those that read already are not called again."""
    source = made(lambda job: None)
    for count in 5 * [2, 3, 5, READERS]:
        together = threading.Barrier(count)
        source.read = lambda job, together=together: together.wait(PATIENCE_S)  # type: ignore[misc]
        source.ask(*range(count))
        wait_for(lambda: source.idle)
        assert source.error is None
    alone, gate = threading.Barrier(2), threading.Event()
    source.read = lambda job: (alone.wait(PATIENCE_S), gate.wait(PATIENCE_S))
    source.ask(0)
    alone.wait(PATIENCE_S)
    source.ask(1)
    alone.wait(PATIENCE_S)  # while the first is still being read
    gate.set()
    wait_for(lambda: source.idle)


def test_nothing_that_was_asked_for_is_left(made: Callable[..., Made]) -> None:
    """Asked for at any moment, while others fall asleep or are called; or forgotten in between."""
    chance, read, number = random.Random(4), list[int](), 0
    source = made(read.append)
    for turn in range(1500):
        for _ in range(chance.randint(1, 4)):
            count = chance.randint(0, 2 * READERS)
            source.ask(*range(number, number + count))
            number += count
            if chance.random() < 0.3:
                time.sleep(chance.random() * 0.0005)
        if turn % 7 == 0:
            source.restart()
            read.clear()
            number = 0
            continue
        wait_for(lambda wanted=number: len(read) == wanted)  # type: ignore[misc]
        assert sorted(read) == list(range(number))
    wait_for(lambda: source.idle)


def test_what_fails_ends_all_readers(made: Callable[..., Made]) -> None:
    def read(job: int) -> None:
        if job == 5:
            raise BundleError("it is damaged")

    source = made(read)
    source.ask(*range(3 * READERS))
    wait_for(lambda: not any(thread.is_alive() for thread in source._threads))
    with pytest.raises(BundleError, match="it is damaged"):
        source.check()
    source.ask(1)
