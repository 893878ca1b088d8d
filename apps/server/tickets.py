"""Tickets: a request's place in the queue, the works that it is made into, and what comes of them."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from edgert import Generation

from .errors import ApiError

_MOST_EVENTS = 4096
"""Events that wait for a client that does not read: then its answer ends."""


class Work(Protocol):
    """Something to compute, piece by piece. `close` may be called from any thread, also while it computes."""

    def __iter__(self) -> Iterator[Any]: ...

    def close(self) -> None: ...


class Made(NamedTuple):
    """A work brought something. work: its index."""

    work: int
    piece: Any


class Done(NamedTuple):
    """All works are done."""


class Failed(NamedTuple):
    """A work ended early, and those after it."""

    error: ApiError


Event = Made | Done | Failed


class Queue(Protocol):
    """Where tickets wait."""

    def forget(self, ticket: "Ticket") -> None:
        """Take one out, if it waits."""

    def place_of(self, ticket: "Ticket") -> int:
        """How many are before it, those that are answered included."""


class Ticket:
    """A request's place in the queue, and what comes of it."""

    def __init__(self, queue: "Queue") -> None:
        self.works: Sequence[Work] = ()
        self.begun = False
        self.ended = False
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    async def next(self, timeout: float | None = None) -> Event | None:
        """The next event; None if none came within so many seconds."""
        try:
            return await asyncio.wait_for(self._events.get(), timeout)
        except TimeoutError:
            return None

    def tell(self, event: Event) -> None:
        """Called from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: Event) -> None:
        if self._events.qsize() >= _MOST_EVENTS and not isinstance(event, Failed):
            self.end(ApiError(408, "the client reads too slowly"))
        else:
            self._events.put_nowait(event)

    def end(self, error: ApiError | None = None) -> None:
        """End the answer, or the wait for it. error: what its client is told, if it is still there. Nothing happens
        where it has ended already. Called from any thread."""
        if not self.ended:
            self.ended = True
            self._queue.forget(self)
            for work in self.works:
                work.close()
            self.tell(Failed(error or ApiError(499, "the client has gone")))

    @property
    def progress(self) -> str:
        """What it waits for, for people; empty when pieces are being made."""
        if not self.begun:
            return f"queued {self._queue.place_of(self)}"
        for work in self.works:
            if isinstance(work, Generation) and not work.token_ids:
                return f"prefill {min(work.computed, len(work.prompt_ids))} of {len(work.prompt_ids)} tokens"
        return ""
