"""Whose turn a model is: one answer has it; those that wait get it in the order in which they asked."""

import threading
from collections import deque


class Turns:
    """Hands one turn about, from thread to thread. A turn is any object, known by its identity.

    Whoever holds it keeps it until it gives it back, or another takes it without waiting.
    """

    def __init__(self) -> None:
        # Re-entrant: an answer that is let go gives its turn back in whatever line the garbage collector came upon it.
        self._lock = threading.RLock()
        self._holder: object | None = None
        self._waiting: deque[tuple[object, threading.Lock]] = deque()
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def holds(self, turn: object) -> bool:
        return self._holder is turn

    def take(self, turn: object, *, wait: bool) -> None:
        """Take the turn: from whoever holds it, or with `wait` after all that wait already.

        Returns without it where it was given back while waiting, or all turns have ended (`close`).
        """
        gate = threading.Lock()
        with self._lock:
            if not wait:
                self._holder = turn
                return
            if self._closed:
                return
            gate.acquire()
            self._waiting.append((turn, gate))
            self._hand_over()
        try:
            gate.acquire()
        except BaseException:  # Ctrl-C
            self.give_back(turn)
            raise

    def give_back(self, turn: object) -> None:
        """Let the next have the turn, if this one has it, or stop waiting for it."""
        with self._lock:
            for entry in [entry for entry in self._waiting if entry[0] is turn]:
                self._waiting.remove(entry)
                entry[1].release()
            if self._holder is turn:
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
        if self._holder is None and self._waiting:
            self._holder, gate = self._waiting.popleft()
            gate.release()
