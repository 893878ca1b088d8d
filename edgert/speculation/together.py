"""Answers that are computed together: each pass over the weights takes what all that are under way ask for.

Where weights are streamed a pass reads the same bytes for several answers as for one ("continuous batching", Yu et al.
2022, "Orca"); of prompts each takes as many tokens as answers leave room for ("chunked prefill", Agrawal et al. 2023,
"Sarathi"), of several prompts at once (Zhao et al. 2024, "Prepacking").
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import NamedTuple

from edgert.engine.session import Session
from edgert.engine.worker import Job
from edgert.generation.steps import Step
from edgert.generation.turns import turn_lost

from .speculator import Asked, Speculator

_LEAST_WAIT_S = 1e-3
_WAIT_SHARE = 0.1
"""How long a pass waits for the others of the last one: so much of its time, but so many seconds at least. Whoever does
not come in that time is waited for again when it has come by itself."""


@dataclass(eq=False)
class _Entry:
    """holds: whether the answer still has its turn."""

    asked: Asked
    holds: Callable[[], bool]
    gone: bool = False

    @property
    def wanted(self) -> bool:
        return not self.gone and self.holds()


class _Computed(NamedTuple):
    """Whose the last pass was. It keeps nothing of an answer alive."""

    session: Session
    holds: Callable[[], bool]


class Together:
    """Gathers what answers ask for, each in a thread of its own, and has it computed. All but `step` is done in the
    model's thread."""

    def __init__(self, speculator: Speculator) -> None:
        self._speculator = speculator
        self._arrived: SimpleQueue[_Entry] = SimpleQueue()  # neither interrupts nor the garbage collector harm it
        self._waiting: list[_Entry] = []
        self._last: list[_Computed] = []
        self._pass_s = 0.0

    def step(self, asked: Asked, holds: Callable[[], bool],
             run: Callable[[Callable[[Job[None]], None]], None]) -> Step:
        """What comes of it. holds: whether the answer still has its turn. run: runs a job in the model's thread, and
        waits for it. Raises what Engine.forward_all raises, what choosing does, and ModelError when the turn is lost.
        """
        entry = _Entry(asked, holds)
        try:
            self._arrived.put(entry)
            while not asked.done:
                run(lambda job: self._pass(entry, job))
        finally:
            entry.gone = True
        if asked.error is not None:
            raise asked.error
        assert asked.step is not None
        return asked.step

    def _pass(self, entry: _Entry, job: Job[None]) -> None:
        """A job: compute once, what this answer asks for and others ask for too; nothing, if another's did that."""
        if entry.asked.done:
            return
        self._gather()
        batch = self._waiting
        started = time.perf_counter()
        if entry in batch:
            # Where it is not alone, that one is not wanted any more ends nothing before the pass has come to its end.
            self._speculator.compute([each.asked for each in batch], job.cancel if len(batch) == 1 else None)
        self._pass_s = time.perf_counter() - started
        self._last = [_Computed(each.asked.session, each.holds) for each in batch]
        self._waiting = [each for each in batch if not each.asked.done]

    def _gather(self) -> None:
        """Have in `_waiting` all that is asked for. Waits a little for those that were computed in the last pass."""
        end = time.perf_counter() + max(_LEAST_WAIT_S, _WAIT_SHARE * self._pass_s)
        with suppress(Empty):
            while True:
                left = end - time.perf_counter() if self._expected() else 0.0
                self._waiting.append(self._arrived.get(timeout=left) if left > 0 else self._arrived.get_nowait())
        for each in self._waiting:
            if not each.wanted:
                each.asked.error = turn_lost()
        self._waiting = [each for each in self._waiting if not each.asked.done]

    def _expected(self) -> bool:
        """Whether an answer of the last pass will ask for more, perhaps, and has not yet."""
        here = [each.asked.session for each in self._waiting]
        return any(computed.session not in here and computed.holds() for computed in self._last)
