"""The engine service: threads in which one model answers, one request after another in each.

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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from edgert import EdgertError, Generation, LanguageModel, Scores
from edgert.watching import Watch, give_memory_back

from .errors import ApiError, failed, refused
from .tickets import Done, Failed, Made, Ticket, Work

T = TypeVar("T")
OpenModel = Callable[[int | str | None], LanguageModel]
"""Loads the model with a memory budget; None for what the command line asked for."""

_LONGEST_RETRY_S = 60
_RELOADING_S = 2
"""Seconds after which a client is told to ask again while the model is being loaded."""


class _Change(NamedTuple):
    """Something that is done with the model when all before it in the queue has been answered. work: returns why it
    could not be done."""

    work: Callable[[], EdgertError | None]
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
    """See above. open_model: loads the model. queue: how many requests may wait for those that are answered. parallel:
    how many are answered at once; the model has room for so many."""

    open_model: OpenModel
    queue: int
    follow_reads: bool = True
    parallel: int = 1
    counts: Counts = field(default_factory=Counts)
    state: str = "loading"
    """loading, ready, unloaded until somebody asks (`wake`), or failed."""
    error: EdgertError | None = None
    """Why the model could not be loaded."""
    model: LanguageModel | None = None
    watch: Watch | None = None
    on_settled: Callable[[], object] = lambda: None
    """Called when the model has been loaded for the first time, or could not be."""
    loads: int = 0
    """How many times a model has been loaded."""
    used: float = field(default_factory=time.monotonic)
    """When a request came, or had its answer, for the last time, by `time.monotonic`."""

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._items: deque[Ticket | _Change] = deque()
        self._running: list[Ticket] = []
        self._memory: int | str | None = None
        self._settling: asyncio.Future[None] | None = None
        """The last unloading or waking."""
        self._stopping = False
        self._preparing = ThreadPoolExecutor(1, "edgert-prepare")
        self._answering = ThreadPoolExecutor(self.parallel, "edgert-answer")
        self._thread = threading.Thread(target=self._serve, name="edgert-serve", daemon=True)

    def start(self) -> None:
        """Begin to load the model. Called once."""
        self._thread.start()

    # From the event loop

    def enter(self) -> Ticket:
        """Take a place in the queue. Raises ApiError: 429 where it is full, 503 where there is no model now."""
        with self._changed:
            self._check_ready()
            if len(self._items) + len(self._running) >= self.queue + self.parallel:
                raise ApiError(429, f"{self.queue} requests are waiting already; try again later",
                               code="queue_full", retry_after=self._retry_after())
            ticket = Ticket(self)
            self._items.append(ticket)
            self.used = time.monotonic()
            return ticket

    def _check_ready(self) -> None:
        if self._stopping or self.state == "failed":
            raise ApiError(503, "the server is stopping" if self._stopping else "there is no model: "
                           f"{self.error}", code="unavailable")
        if self.state != "ready":
            raise ApiError(503, "the model is being loaded", code="loading", retry_after=_RELOADING_S)

    def _retry_after(self) -> int:
        each = self.counts.answer_s / self.counts.answers if self.counts.answers else 1.0
        return min(max(round(each * len(self._items) / self.parallel), 1), _LONGEST_RETRY_S)

    async def prepare(self, make: Callable[[LanguageModel], T]) -> T:
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

    async def submit(self, ticket: Ticket, make: Callable[[LanguageModel], Sequence[Work]]) -> Sequence[Work]:
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
        """How many are before it in the queue, those that are answered included."""
        with self._changed:
            return self._items.index(ticket) + len(self._running) if ticket in self._items else 0

    @property
    def answering(self) -> bool:
        """Whether a request is being answered."""
        return bool(self._running)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._items)

    async def reload(self, memory: int | str | None, open_model: OpenModel | None = None) -> None:
        """Load the model anew with another budget, or another model that `open_model` loads, when all that is in the
        queue has been answered. Until then, and while it loads, nothing new is let in. Raises ApiError; the model is
        then what it was before, with the budget that it had before."""
        with self._changed:
            state = self.state
            if self._stopping or state == "loading" or (state == "failed" and open_model is None):
                self._check_ready()
            done = self._ask(partial(self._reload, memory, open_model, state))
        try:
            await done
        except EdgertError as error:
            raise ApiError(400, str(error), param="memory") from None

    async def unload(self) -> bool:
        """Close the model, and give its memory back, until `wake`. Returns False, and nothing happens, where there is
        none now, and where requests wait or are answered."""
        with self._changed:
            if self._stopping or self.state != "ready" or self._items or self._running:
                return False
            self._settling = self._ask(self._unload)
        await asyncio.shield(self._settling)
        return True

    async def wake(self) -> None:
        """Load the model that was unloaded, or is just being unloaded, as it was before; every request that needs one
        asks for that first. Raises ApiError where it cannot be loaded."""
        while True:
            with self._changed:
                if self.state == "unloaded" and not self._stopping:
                    self._settling = self._ask(partial(self._reload, self._memory, None, "unloaded"))
                settling = self._settling
            if settling is None or settling.done():
                return
            try:
                await asyncio.shield(settling)
            except EdgertError as error:
                raise ApiError(503, str(error), code="unavailable") from None

    def _ask(self, work: Callable[[], EdgertError | None]) -> "asyncio.Future[None]":
        """Have the thread that loads do something; nothing new is let in until then. The lock is held."""
        loop = asyncio.get_running_loop()
        self.state = "loading"
        change = _Change(work, loop.create_future(), loop)
        self._items.append(change)
        self._changed.notify_all()
        return change.done

    def end_all(self) -> None:
        """End all answers, and let nothing new in."""
        with self._changed:
            self._stopping = True
            tickets = [item for item in (*self._running, *self._items) if isinstance(item, Ticket)]
            self._changed.notify_all()
        for ticket in tickets:
            ticket.end(ApiError(503, "the server is stopping", code="unavailable"))

    def stop(self) -> None:
        """End all answers, close the model and end the threads; waits for that."""
        self.end_all()
        self._preparing.shutdown(wait=False)
        if self._thread.ident is not None:
            self._thread.join()

    # In the thread that loads, and hands requests on

    def _serve(self) -> None:
        try:
            self._load(None)
        except EdgertError as error:
            self.error, self.state = error, "failed"
        self.on_settled()
        while (item := self._next()) is not None:
            if isinstance(item, _Change):
                refusal = item.work()
                if not item.loop.is_closed():
                    item.loop.call_soon_threadsafe(_settle, item.done, refusal)
            else:
                self._answering.submit(self._answer, item)
        self._answering.shutdown()
        if self.model is not None:
            self.model.close()

    def _load(self, memory: int | str | None) -> None:
        model = self.open_model(memory)
        try:
            self.watch = Watch(model, reads=self.follow_reads)
        except BaseException:
            model.close()
            raise
        self.model, self.counts, self._memory = model, Counts(), memory
        self.loads += 1
        self.used = time.monotonic()
        self.state = "ready"

    def _next(self) -> Ticket | _Change | None:
        """Wait for the next item whose turn it is; None to end."""
        with self._changed:
            while not self._stopping:
                item = self._items[0] if self._items else None
                if isinstance(item, _Change) and not self._running:
                    return self._items.popleft()
                if isinstance(item, Ticket) and item.works and len(self._running) < self.parallel:
                    self._running.append(item)
                    return self._items.popleft()
                self._changed.wait()
        return None

    def _reload(self, memory: int | str | None, open_model: OpenModel | None, before: str) -> EdgertError | None:
        """Load the model anew, or another one; if that fails, what it was before. before: the state then."""
        opened, budget = self.open_model, self.watch.budget if self.watch is not None else None
        self._close()
        self.open_model = open_model or opened
        try:
            self._load(memory)
            self.error = None
            return None
        except EdgertError as refusal:
            self.open_model = opened
            give_memory_back()
            try:
                if before == "failed":
                    raise
                if before == "unloaded":
                    self.state = before
                else:
                    self._load(budget)
                return refusal
            except EdgertError as error:
                self.error, self.state = error, "failed"
                return error

    def _unload(self) -> None:
        self._close()
        self.state = "unloaded"

    def _close(self) -> None:
        if self.model is not None and self.watch is not None:
            self.watch.let_go()
            self.model.close()
            self.model = None
            give_memory_back()

    # In a thread that answers

    def _answer(self, ticket: Ticket) -> None:
        ticket.begun = True
        started = time.monotonic()
        try:
            for index, work in enumerate(ticket.works):
                self._compute(ticket, index, work)
                if ticket.ended:
                    return
            self._count(answers=1, answer_s=time.monotonic() - started)
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
            with self._changed:
                self._running.remove(ticket)
                self.used = time.monotonic()
                self._changed.notify_all()

    def _compute(self, ticket: Ticket, index: int, work: Work) -> None:
        """Pass on what a work brings, and count."""
        before = (0, 0, 0)
        if isinstance(work, Generation):
            self._count(prompt_tokens=len(work.prompt_ids))
        for piece in work:
            if ticket.ended:
                return
            ticket.tell(Made(index, piece))
            if isinstance(piece, Scores):
                self._count(prompt_tokens=len(piece.logprobs))
            if isinstance(work, Generation):
                s = work.statistics
                now = s.generated_tokens, s.guessed, s.right
                self._count(tokens=now[0] - before[0], drafted=now[1] - before[1], accepted=now[2] - before[2])
                before = now
        if isinstance(work, Generation):
            self._count(cached_tokens=work.statistics.prompt_tokens - work.statistics.prompt_computed)

    def _count(self, **more: float) -> None:
        """Add to what was done."""
        with self._changed:
            for name, value in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + value)


def _settle(future: "asyncio.Future[None]", error: EdgertError | None) -> None:
    if future.done():  # whoever asked has gone
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
