"""Server-sent events, by hand; and clients that leave while they wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import ApiError
from .tickets import Done, Failed, Made, Ticket

_PING_S = 1.0
"""How often a client that gets nothing else is told that it is waiting: proxies and clients give up on silence."""


class Ending(Protocol):
    """Something that is done for a client."""

    def end(self) -> None:
        """End it; nothing happens where it has ended already."""


@asynccontextmanager
async def ending_with_client(receive: Receive, ending: Ending) -> AsyncIterator[None]:
    """End what is done for a client when it leaves."""
    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        ending.end()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        ending.end()  # where this task was cancelled


async def results(request: Request, ticket: Ticket) -> AsyncIterator[Made]:
    """What is made for a client that wants all at once. Raises ApiError."""
    async with ending_with_client(request.receive, ticket):
        async for one in made(ticket):
            yield one


async def made(ticket: Ticket) -> AsyncIterator[Made]:
    """What is made, to the end. Raises ApiError."""
    while not isinstance(event := await ticket.next(), Done):
        if isinstance(event, Failed):
            raise event.error
        assert isinstance(event, Made)
        yield event


def data(value: Any) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


class EventStream(Response):
    """The pieces of an answer as server-sent events: while it waits comments that say for what, and in the end [DONE],
    or an error without it.

    Each of `chunks` is made of what came, or of None at the beginning and at the end.
    """

    media_type = "text/event-stream"

    def __init__(self, ticket: Ticket, chunks: "Chunks") -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._ticket, self._chunks = ticket, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with ending_with_client(receive, self._ticket):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for part in self._parts():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _parts(self) -> AsyncIterator[bytes]:
        try:
            while not isinstance(event := await self._ticket.next(_PING_S), Done):
                if event is None:
                    yield f": {self._ticket.progress or 'waiting'}\n\n".encode()
                elif isinstance(event, Failed):
                    raise event.error
                else:
                    for chunk in self._chunks.of(event):
                        yield data(chunk)
            for chunk in self._chunks.last():
                yield data(chunk)
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield data(error.body)


class Chunks:
    """Makes the JSON objects of a stream."""

    def of(self, made: Made) -> list[dict[str, Any]]:
        raise NotImplementedError

    def last(self) -> list[dict[str, Any]]:
        """Those after all that was made."""
        return []
