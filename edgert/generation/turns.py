"""Whose turn a model is: one answer has it; those that wait get it in the order in which they asked."""

import threading
import weakref
from collections import deque

_LOOK_S = 0.5
"""How often somebody who waits looks whether the holder is gone without a word: an interrupt can come into the line
that would have given the turn back."""


class Turn:
    """What one answer takes, and gives back at the latest when it is gone."""


class Turns:
    """Hands one turn about, from thread to thread.

    Whoever holds it keeps it until it gives it back, or another takes it without waiting.
    """

    def __init__(self) -> None:
        # Re-entrant: an answer that is let go gives its turn back in whatever line the garbage collector came upon it.
        self._lock = threading.RLock()
        self._holder: weakref.ref[Turn] | None = None
        self._waiting: deque[tuple[Turn, threading.Lock]] = deque()
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def holds(self, turn: Turn) -> bool:
        return self._holder is not None and self._holder() is turn

    def take(self, turn: Turn, *, wait: bool) -> None:
        """Take the turn: from whoever holds it, or with `wait` after all that wait already.

        Returns without it where it was given back while waiting, or all turns have ended (`close`).
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
        """Let the next have the turn, if this one has it, or stop waiting for it."""
        with self._lock:
            for entry in [entry for entry in self._waiting if entry[0] is turn]:
                self._waiting.remove(entry)
                entry[1].release()
            if self.holds(turn):
                self._holder = None
            self._hand_over()

    def end(self) -> None:
        """Take the turn from whoever holds it."""
        with self._lock:
            self._holder = None
            self._hand_over()

    def close(self) -> None:
        """End all turns, and all waiting for one."""
        with self._lock:
            self._closed, self._holder = True, None
            while self._waiting:
                self._waiting.popleft()[1].release()

    def _hand_over(self) -> None:
        if (self._holder is None or self._holder() is None) and self._waiting:
            turn, gate = self._waiting.popleft()
            self._holder = weakref.ref(turn)
            gate.release()
