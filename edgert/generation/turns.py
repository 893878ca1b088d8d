"""Turns: which answers may use the model. As many as it computes together have a turn; those that wait get one in the
order they asked."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from edgert.errors import ModelError

_LOOK_S = 0.5
"""How often a waiting thread checks whether a holder has vanished without giving the turn back: an interrupt can come
just before the line that would have done so."""


def turn_lost() -> ModelError:
    """What an answer is told that has no turn any more."""
    return ModelError("this answer was closed, or ended by a newer one of the same model; "
                      "answers asked for with wait=True wait for one another")


class Turn:
    """One answer's turn. It ends at the latest when this object is garbage-collected.

    slot: which of the model's places it has, or had; -1 before. choose: of places that are free, the one that it likes
    best.
    """

    def __init__(self, choose: Callable[[Sequence[int]], int] = lambda free: free[0]) -> None:
        self.slot = -1
        self.choose = choose


class Turns:
    """Passes turns from answer to answer, in any thread; at most `count` at a time.

    An answer holds one until it gives it back, or another answer takes it without waiting.
    """

    def __init__(self, count: int = 1) -> None:
        # Re-entrant: a garbage-collected answer gives its turn back at whatever line the collector happened to run.
        self._lock = threading.RLock()
        self._holders: list[weakref.ref[Turn] | None] = [None] * count
        self._order: list[int] = []
        """Places that have been given, the one that was given last at the end."""
        self._waiting: deque[tuple[Turn, threading.Lock]] = deque()
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many answers are waiting."""
        return len(self._waiting)

    def holds(self, turn: Turn) -> bool:
        return self._holder(turn.slot) is turn

    def is_free(self, slot: int) -> bool:
        """Whether nobody holds a place."""
        return self._holder(slot) is None

    def _holder(self, slot: int) -> Turn | None:
        holder = self._holders[slot] if slot >= 0 else None
        return None if holder is None else holder()

    def take(self, turn: Turn, *, wait: bool) -> None:
        """Take a turn: a free one, or if there is none, from the answer that has had it longest; with `wait` after all
        that are waiting already.

        Returns without the turn if it was given back while waiting, or if all turns have ended (`close`).
        """
        gate = threading.Lock()
        with self._lock:
            if not wait:
                self._give(turn, self._free() or self._order[:1])
                return
            if self._closed:
                return
            gate.acquire()
            self._waiting.append((turn, gate))
            self._hand_over()
        try:
            while not gate.acquire(timeout=_LOOK_S):
                with self._lock:
                    self._hand_over()
                    if self.holds(turn):  # whoever gave it was interrupted before it could say so
                        return
        except BaseException:  # Ctrl-C
            self.give_back(turn)
            raise

    def _free(self) -> list[int]:
        return [slot for slot in range(len(self._holders)) if self.is_free(slot)]

    def _give(self, turn: Turn, slots: Sequence[int]) -> None:
        slot = turn.choose(slots) if len(slots) > 1 else slots[0]
        turn.slot = slot
        self._order = [*(other for other in self._order if other != slot), slot]
        self._holders[slot] = weakref.ref(turn)

    def give_back(self, turn: Turn) -> None:
        """Give the turn to the next in line if this answer holds it; otherwise stop waiting for it."""
        with self._lock:
            for entry in [entry for entry in self._waiting if entry[0] is turn]:
                self._waiting.remove(entry)
                entry[1].release()
            if self.holds(turn):
                self._holders[turn.slot] = None
            self._hand_over()

    def end(self) -> None:
        """Take all turns away from their holders."""
        with self._lock:
            self._holders = [None] * len(self._holders)
            self._hand_over()

    def close(self) -> None:
        """End all turns and all waiting."""
        with self._lock:
            self._closed, self._holders = True, [None] * len(self._holders)
            while self._waiting:
                self._waiting.popleft()[1].release()

    def _hand_over(self) -> None:
        """Give free turns to those that wait. It may be interrupted anywhere, or run within itself by the garbage
        collector: so who waits is taken off the list last."""
        for turn, gate in list(self._waiting):
            if not self.holds(turn):
                if not (free := self._free()):
                    return
                self._give(turn, free)
            with suppress(ValueError):
                self._waiting.remove((turn, gate))
                gate.release()
