"""Which slots of a window to give away: empty ones first, then those of what was needed longest ago."""

from collections import deque

import numpy as np

from .on_demand import NOBODY, Pool

_AT_ONCE = 4096
"""Slots that are put in order at once: to do it for all, for each layer, would take longer than reading."""


class LeastRecent:
    """The order of a pool's slots. used: int64, when each entry was needed last. coming: bool, whether one has a slot
    and has not been read to its end; those keep it. `pool.held` must be filled as far as it will be at first.

    An order stays right as long as it is not used up: what was needed since is behind all that is in it. Only what was
    spared, or coming, is not looked at again before.
    """

    def __init__(self, pool: Pool, used: np.ndarray, coming: np.ndarray) -> None:
        self._held, self._used, self._coming = pool.held, used, coming
        self._empty = deque(np.flatnonzero(pool.held == NOBODY).tolist())
        self._slots, self._ages, self._at = np.empty(0, np.int64), np.empty(0, np.int64), 0

    def emptied(self, slots: list[int]) -> None:
        """Nothing is in these any more."""
        self._empty.extend(slots)

    def take(self, count: int, now: int, spared: np.ndarray | None = None) -> np.ndarray:
        """Slots to give away, none of which holds what was needed at the time `now`, as many as there are up to
        `count`: int64. spared: a time for each entry; where that is `now`, it is left as it is."""
        found = [self._empty.popleft() for _ in range(min(count, len(self._empty)))]
        before = -1
        """How many there were when slots were put in order last."""
        while len(found) < count:
            if self._at == len(self._slots):
                if len(found) == before:
                    break
                self._order(now, found, spared)
                before = len(found)
            some = slice(self._at, self._at + 2 * (count - len(found)))
            slots, entries = self._slots[some], self._held[self._slots[some]]
            free = (entries != NOBODY) & (self._used[entries] == self._ages[some]) & (self._ages[some] < now)
            free &= ~self._coming[entries]
            if spared is not None:
                free &= spared[entries] != now
            chosen = np.flatnonzero(free)[:count - len(found)]
            found += slots[chosen].tolist()
            self._at += int(chosen[-1]) + 1 if len(found) == count else len(slots)
        return np.array(found, np.int64)

    def _order(self, now: int, but: list[int], spared: np.ndarray | None) -> None:
        """Begin again with those that were needed longest ago, without some that are being taken."""
        ages = self._used[self._held]
        there = (self._held != NOBODY) & (ages < now) & ~self._coming[self._held]
        if spared is not None:
            there &= spared[self._held] != now
        there[but] = False
        free = np.flatnonzero(there)
        if len(free) > _AT_ONCE:
            free = free[np.argpartition(ages[free], _AT_ONCE)[:_AT_ONCE]]
        self._slots = free[np.argsort(ages[free], kind="stable")]
        self._ages, self._at = ages[self._slots], 0
