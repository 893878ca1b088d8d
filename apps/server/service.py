"""The engine service: one thread in which one model answers, one request after another.

Requests wait in a bounded queue, first in, first out. A request that comes in takes a place in it (`enter`), is made
into *works* by a second thread, which tokenizes and checks (`prepare`), and is then computed (`submit`). Works are
iterators that can be closed: answers (`edgert.Generation`), say. What they bring comes to the event loop as events of
the request's `Ticket`; that nobody wants it any more is noticed within one token, or one chunk of the prompt.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from edgert import EdgertError, Generation, Model, Scores
from edgert.watching import Watch, give_memory_back

from .errors import ApiError, failed, refused

OpenModel = Callable[[int | str | None], Model]
"""Loads the model with a memory budget; None for what the command line asked for."""

_MOST_EVENTS = 4096
"""Events that wait for a client that does not read: then its answer ends."""
_LONGEST_RETRY_S = 60
_RELOADING_S = 2
"""Seconds after which a client is told to ask again while the model is being loaded."""


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
T = TypeVar("T")


class Ticket:
    """A request's place in the queue, and what comes of it."""

    def __init__(self, service: "EngineService") -> None:
        self.works: Sequence[Work] = ()
        self.begun = False
        self.ended = False
        self._service = service
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
            self._service.forget(self)
            for work in self.works:
                work.close()
            self.tell(Failed(error or ApiError(499, "the client has gone")))

    @property
    def progress(self) -> str:
        """What it waits for, for people; empty when pieces are being made."""
        if not self.begun:
            return f"queued {self._service.place_of(self)}"
        return self._service.prefill


class _Reload(NamedTuple):
    memory: int | str | None
    open_model: OpenModel | None
    done: "asyncio.Future[None]"
    loop: asyncio.AbstractEventLoop


@dataclass
class Counts:
    """What the model has done since it was loaded."""

    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    answers: int = 0
    answer_s: float = 0.0


@dataclass
class EngineService:
    """See above. open_model: loads the model. queue: how many requests may wait for the one that is answered."""

    open_model: OpenModel
    queue: int
    follow_reads: bool = True
    counts: Counts = field(default_factory=Counts)
    state: str = "loading"
    """loading, ready or failed."""
    error: EdgertError | None = None
    """Why the model could not be loaded."""
    model: Model | None = None
    watch: Watch | None = None
    on_settled: Callable[[], object] = lambda: None
    """Called when the model has been loaded for the first time, or could not be."""

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._items: deque[Ticket | _Reload] = deque()
        self._now: Ticket | None = None
        self._stopping = False
        self._preparing = ThreadPoolExecutor(1, "edgert-prepare")
        self._thread = threading.Thread(target=self._serve, name="edgert-serve", daemon=True)

    def start(self) -> None:
        """Begin to load the model. Called once."""
        self._thread.start()

    # From the event loop

    def enter(self) -> Ticket:
        """Take a place in the queue. Raises ApiError: 429 where it is full, 503 where there is no model now."""
        with self._changed:
            self._check_ready()
            if len(self._items) + (self._now is not None) > self.queue:
                raise ApiError(429, f"{self.queue} requests are waiting already; try again later",
                               code="queue_full", retry_after=self._retry_after())
            ticket = Ticket(self)
            self._items.append(ticket)
            return ticket

    def _check_ready(self) -> None:
        if self._stopping or self.state == "failed":
            raise ApiError(503, "the server is stopping" if self._stopping else "there is no model: "
                           f"{self.error}", code="unavailable")
        if self.state == "loading":
            raise ApiError(503, "the model is being loaded", code="loading", retry_after=_RELOADING_S)

    def _retry_after(self) -> int:
        each = self.counts.answer_s / self.counts.answers if self.counts.answers else 1.0
        return min(max(round(each * len(self._items)), 1), _LONGEST_RETRY_S)

    async def prepare(self, make: Callable[[Model], T]) -> T:
        """make(model), in the thread that prepares. Raises ApiError for what the model refuses."""
        def work() -> T:
            if (model := self.model) is None:  # never for a request that has entered: loading anew waits for it
                self._check_ready()
                raise ApiError(503, "the model is being loaded", code="loading", retry_after=_RELOADING_S)
            return make(model)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._preparing, work)
        except EdgertError as error:
            raise refused(error) from None

    async def submit(self, ticket: Ticket, make: Callable[[Model], Sequence[Work]]) -> Sequence[Work]:
        """Make a request's works, and have them computed when its turn comes. Raises ApiError; then it has no place in
        the queue any more."""
        try:
            made = await self.prepare(make)
        except BaseException:
            ticket.end()
            raise
        with self._changed:
            ticket.works = made
            self._changed.notify_all()
        return made

    def forget(self, ticket: Ticket) -> None:
        """Take a request out of the queue, if it waits there."""
        with self._changed:
            if ticket in self._items:
                self._items.remove(ticket)
                self._changed.notify_all()

    def place_of(self, ticket: Ticket) -> int:
        """How many are before it in the queue, the one that is answered included."""
        with self._changed:
            return self._items.index(ticket) + (self._now is not None) if ticket in self._items else 0

    @property
    def answering(self) -> bool:
        """Whether a request is being answered."""
        return self._now is not None

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._items)

    @property
    def prefill(self) -> str:
        """How far the prompt of the current answer has been computed, for people; empty when it has been."""
        ticket, model = self._now, self.model
        if ticket is None or model is None:
            return ""
        for work in ticket.works:
            if isinstance(work, Generation) and not work.token_ids:
                return f"prefill {min(model.computed, len(work.prompt_ids))} of {len(work.prompt_ids)} tokens"
        return ""

    async def reload(self, memory: int | str | None, open_model: OpenModel | None = None) -> None:
        """Load the model anew with another budget, or another model that `open_model` loads, when all that is in the
        queue has been answered. Until then, and while it loads, nothing new is let in. Raises ApiError; the model is
        then what it was before, with the budget that it had before."""
        loop = asyncio.get_running_loop()
        with self._changed:
            if open_model is None or self.state != "failed":
                self._check_ready()
            self.state = "loading"
            item = _Reload(memory, open_model, loop.create_future(), loop)
            self._items.append(item)
            self._changed.notify_all()
        try:
            await item.done
        except EdgertError as error:
            raise ApiError(400, str(error), param="memory") from None

    def end_all(self) -> None:
        """End all answers, and let nothing new in."""
        with self._changed:
            self._stopping = True
            tickets = [item for item in (self._now, *self._items) if isinstance(item, Ticket)]
            self._changed.notify_all()
        for ticket in tickets:
            ticket.end(ApiError(503, "the server is stopping", code="unavailable"))

    def stop(self) -> None:
        """End all answers, close the model and end the threads; waits for that."""
        self.end_all()
        self._preparing.shutdown(wait=False)
        if self._thread.ident is not None:
            self._thread.join()

    # In the engine's thread

    def _serve(self) -> None:
        try:
            self._load(None)
        except EdgertError as error:
            self.error, self.state = error, "failed"
        self.on_settled()
        while (item := self._next()) is not None:
            if isinstance(item, _Reload):
                self._reload(item)
            else:
                self._answer(item)
        if self.model is not None:
            self.model.close()

    def _load(self, memory: int | str | None) -> None:
        model = self.open_model(memory)
        try:
            self.watch = Watch(model, reads=self.follow_reads)
        except BaseException:
            model.close()
            raise
        self.model, self.counts = model, Counts()
        self.state = "ready"

    def _next(self) -> Ticket | _Reload | None:
        """Wait for the next item whose turn it is; None to end."""
        with self._changed:
            self._now = None
            while not self._stopping:
                if self._items and (isinstance(self._items[0], _Reload) or self._items[0].works):
                    item = self._items.popleft()
                    self._now = item if isinstance(item, Ticket) else None
                    return item
                self._changed.wait()
        return None

    def _reload(self, item: _Reload) -> None:
        before, opened, error = None, self.open_model, None
        if self.model is not None and self.watch is not None:
            before = self.watch.budget
            self.watch.let_go()
            self.model.close()
            self.model = None
            give_memory_back()
        try:
            try:
                self.open_model = item.open_model or opened
                self._load(item.memory)
                self.error = None
            except EdgertError as refusal:
                error, self.open_model = refusal, opened
                if before is None:  # there was none
                    raise
                give_memory_back()
                self._load(before)
        except EdgertError as refusal:
            error = self.error = refusal
            self.state = "failed"
        if not item.loop.is_closed():
            item.loop.call_soon_threadsafe(_settle, item.done, error)

    def _answer(self, ticket: Ticket) -> None:
        ticket.begun = True
        started = time.monotonic()
        try:
            for index, work in enumerate(ticket.works):
                self._compute(ticket, index, work)
                if ticket.ended:
                    return
            self.counts.answers += 1
            self.counts.answer_s += time.monotonic() - started
            ticket.ended = True
            ticket.tell(Done())
        except Exception as error:
            if not ticket.ended:
                ticket.ended = True
                ticket.tell(Failed(failed(error)))
                if not isinstance(error, EdgertError):
                    traceback.print_exception(error, file=sys.stderr)
        finally:
            for work in ticket.works:
                work.close()
            ticket.works = ()

    def _compute(self, ticket: Ticket, index: int, work: Work) -> None:
        """Pass on what a work brings, and count."""
        counts, before = self.counts, (0, 0, 0)
        if isinstance(work, Generation):
            counts.prompt_tokens += len(work.prompt_ids)
        for piece in work:
            if ticket.ended:
                return
            ticket.tell(Made(index, piece))
            if isinstance(piece, Scores):
                counts.prompt_tokens += len(piece.logprobs)
            if isinstance(work, Generation):
                s = work.statistics
                now = s.generated_tokens, s.guessed, s.right
                counts.tokens += now[0] - before[0]
                counts.drafted += now[1] - before[1]
                counts.accepted += now[2] - before[2]
                before = now
        if isinstance(work, Generation):
            counts.cached_tokens += work.statistics.prompt_tokens - work.statistics.prompt_computed


def _settle(future: "asyncio.Future[None]", error: EdgertError | None) -> None:
    if future.done():  # whoever asked has gone
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
