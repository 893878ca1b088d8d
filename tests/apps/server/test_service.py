"""The engine service by itself: its queue, and whom it lets in."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import edgert
from edgert.apps.server.errors import ApiError
from edgert.apps.server.service import EngineService
from edgert.apps.server.tickets import Done, Event, Failed, Made, Ticket


class Gate:
    """A work that brings its name when the gate is opened."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log, self._open = name, log, threading.Event()
        self.closed = False

    def __iter__(self) -> Iterator[str]:
        self._log.append(self._name)
        self._open.wait(10)
        if self._name == "fails":
            raise edgert.ModelError("the disk is gone")
        if self._name == "breaks":
            raise ZeroDivisionError
        if not self.closed:
            yield self._name

    def open(self) -> None:
        self._open.set()

    def close(self) -> None:
        self.closed = True
        self._open.set()


def with_service(tiny: Path, queue: int, talk: Callable[[EngineService], Awaitable[None]], parallel: int = 1) -> None:
    async def run() -> None:
        service = EngineService(lambda memory: edgert.load(tiny, threads=1, memory=memory, parallel=parallel), queue,
                                parallel=parallel)
        with pytest.raises(ApiError) as loading:
            service.enter()
        assert (loading.value.status, loading.value.code) == (503, "loading")
        settled = asyncio.Event()
        loop = asyncio.get_running_loop()
        service.on_settled = lambda: loop.call_soon_threadsafe(settled.set)
        service.start()
        await settled.wait()
        try:
            await talk(service)
        finally:
            await asyncio.to_thread(service.stop)

    asyncio.run(run())


async def entered(service: EngineService, work: Gate) -> Ticket:
    ticket = service.enter()
    await service.submit(ticket, lambda model: [work])
    return ticket


async def events(ticket: Ticket) -> list[Event]:
    found: list[Event] = []
    while not found or isinstance(found[-1], Made):
        event = await ticket.next(10)
        assert event is not None
        found.append(event)
    return found


def test_first_in_first_out_and_no_more_than_the_queue_holds(tiny: Path) -> None:
    async def talk(service: EngineService) -> None:
        log: list[str] = []
        works = [Gate(str(number), log) for number in range(3)]
        tickets = [await entered(service, work) for work in works]
        with pytest.raises(ApiError) as full:
            service.enter()
        assert full.value.status == 429 and full.value.retry_after is not None
        assert await tickets[2].next(0.01) is None
        assert tickets[2].progress == "queued 2"
        for work in works:
            work.open()
        for number, ticket in enumerate(tickets):
            assert await events(ticket) == [Made(0, str(number)), Done()]
        assert log == ["0", "1", "2"]

    with_service(tiny, 2, talk)


def test_several_at_once(tiny: Path) -> None:
    """As many as may be begin, in order, and whoever ends makes room for the next; loading anew waits for all."""
    async def talk(service: EngineService) -> None:
        works = [Gate(str(number), []) for number in range(5)]
        tickets = [await entered(service, work) for work in works]
        with pytest.raises(ApiError) as full:
            service.enter()
        assert full.value.status == 429
        while [ticket.begun for ticket in tickets] != [True, True, True, False, False]:
            await asyncio.sleep(0.01)
        assert tickets[3].progress == "queued 3" and tickets[4].progress == "queued 4"
        works[1].open()
        assert await events(tickets[1]) == [Made(0, "1"), Done()]
        while not tickets[3].begun:
            await asyncio.sleep(0.01)
        assert not tickets[4].begun
        loading = asyncio.create_task(service.reload("4G"))
        for work in (works[3], works[0], works[4]):
            work.open()
        for number in (0, 3, 4):
            assert await events(tickets[number]) == [Made(0, str(number)), Done()]
        await asyncio.sleep(0.1)
        assert not loading.done() and service.state == "loading"
        works[2].open()
        await loading
        assert service.state == "ready" and not service.answering

    with_service(tiny, 2, talk, parallel=3)


def test_who_leaves_makes_room(tiny: Path) -> None:
    async def talk(service: EngineService) -> None:
        log: list[str] = []
        first, second, third = (Gate(name, log) for name in ("first", "second", "third"))
        answered, waiting = await entered(service, first), await entered(service, second)
        while not log:
            await asyncio.sleep(0.001)
        waiting.end()
        assert isinstance((await events(waiting))[-1], Failed)
        last = await entered(service, third)
        answered.end()
        assert isinstance((await events(answered))[-1], Failed) and first.closed
        third.open()
        assert await events(last) == [Made(0, "third"), Done()]
        assert log == ["first", "third"], "what nobody wants any more is not begun"

    with_service(tiny, 1, talk)


def test_what_is_refused_makes_room(tiny: Path) -> None:
    async def talk(service: EngineService) -> None:
        def refuse(model: edgert.Model) -> Any:
            raise edgert.ModelError("not so")

        for _ in range(3):
            with pytest.raises(ApiError, match="not so"):
                await service.submit(service.enter(), refuse)
        work = Gate("work", [])
        work.open()
        assert await events(await entered(service, work)) == [Made(0, "work"), Done()]

    with_service(tiny, 0, talk)


@pytest.mark.parametrize(("name", "said"), [("fails", "the disk is gone"), ("breaks", "an internal error")])
def test_what_fails_is_told_and_the_next_is_answered(tiny: Path, name: str, said: str,
                                                     capfd: pytest.CaptureFixture[str]) -> None:
    async def talk(service: EngineService) -> None:
        works = [Gate(name, []), Gate("next", [])]
        tickets = [await entered(service, work) for work in works]
        for work in works:
            work.open()
        (failed,) = await events(tickets[0])
        assert isinstance(failed, Failed) and failed.error.status == 500 and said in failed.error.message
        assert (await events(tickets[1]))[-1] == Done()

    with_service(tiny, 2, talk)
    assert ("ZeroDivisionError" in capfd.readouterr().err) == (name == "breaks")


def test_a_client_that_does_not_read(tiny: Path) -> None:
    """Its answer ends: what waits for it takes memory."""
    class Endless(Gate):
        def __iter__(self) -> Iterator[str]:
            while not self.closed:
                yield "more"

    async def talk(service: EngineService) -> None:
        ticket = await entered(service, Endless("endless", []))
        await asyncio.sleep(0.05)
        while not ticket.ended:
            await asyncio.sleep(0.05)
        found = await events(ticket)
        assert len(found) <= 5000 and isinstance(found[-1], Failed)
        assert found[-1].error.message == "the client reads too slowly"

    with_service(tiny, 1, talk)


def test_ending_ends_all(tiny: Path) -> None:
    async def talk(service: EngineService) -> None:
        tickets = [await entered(service, Gate(name, [])) for name in "ab"]
        service.end_all()
        for ticket in tickets:
            last = (await events(ticket))[-1]
            assert isinstance(last, Failed) and last.error.status == 503
        with pytest.raises(ApiError, match="stopping"):
            service.enter()

    with_service(tiny, 2, talk)


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "bad.edge").write_bytes(b"no bundle")

    async def run() -> None:
        service = EngineService(lambda memory: edgert.load(tmp_path / "bad.edge"), 1)
        service.start()
        while service.state == "loading":
            await asyncio.sleep(0.01)
        with pytest.raises(ApiError, match="is not an edgert bundle"):
            service.enter()
        service.stop()

    asyncio.run(run())
