"""Turns: which answer may use the model. One answer has the turn; those that wait get it in the order they asked."""

import threading
import weakref
from collections import deque

_LOOK_S = 0.5
"""How often a waiting thread checks whether the holder has vanished without giving the turn back: an interrupt can come
just before the line that would have done so."""


class Turn:
    """One answer's turn. It ends at the latest when this object is garbage-collected."""


class Turns:
    """Passes one turn from answer to answer, in any thread.

    An answer holds it until it gives it back, or another answer takes it without waiting.
    """

    def __init__(self) -> None:
        # Re-entrant: a garbage-collected answer gives its turn back at whatever line the collector happened to run.
        self._lock = threading.RLock()
        self._holder: weakref.ref[Turn] | None = None
        self._waiting: deque[tuple[Turn, threading.Lock]] = deque()
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many answers are waiting."""
        return len(self._waiting)

    def holds(self, turn: Turn) -> bool:
        return self._holder is not None and self._holder() is turn

    def take(self, turn: Turn, *, wait: bool) -> None:
        """Take the turn: from its holder, or with `wait` after all that are waiting already.

        Returns without the turn if it was given back while waiting, or if all turns have ended (`close`).
        """
        gate = threading.Lock()
        with self._lock:
            if not wait:
                self._holder = weakref.ref(turn)
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
        except BaseException:  # Ctrl-C
            self.give_back(turn)
            raise

    def give_back(self, turn: Turn) -> None:
        """Give the turn to the next in line if this answer holds it; otherwise stop waiting for it."""
        with self._lock:
            for entry in [entry for entry in self._waiting if entry[0] is turn]:
                self._waiting.remove(entry)
                entry[1].release()
            if self.holds(turn):
                self._holder = None
            self._hand_over()

    def end(self) -> None:
        """Take the turn away from its holder."""
        with self._lock:
            self._holder = None
            self._hand_over()

    def close(self) -> None:
        """End the current turn and all waiting."""
        with self._lock:
            self._closed, self._holder = True, None
            while self._waiting:
                self._waiting.popleft()[1].release()

    def _hand_over(self) -> None:
        if (self._holder is None or self._holder() is None) and self._waiting:
            turn, gate = self._waiting.popleft()
            self._holder = weakref.ref(turn)
            gate.release()
