"""Which layers can spare how much: amounts of one sum, searched for by what the model then loses.

As EvoPress (Sieberling et al. 2024): one parent, whose children have somewhat more pruned in one group of matrices and
as much less in another; all are judged by a little text, the best of them and the parent by more. The search begins
with what pruning each group alone changes in its products, or with one amount for all, whichever loses less. A
generation depends on the one before and on its number alone: so where the time is up changes only when it ends.
"""

import contextlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgert.bundle.journal import Entry, Journal
from edgert.errors import SourceError

from .judging import Group, Judge, groups_of

GENERATIONS = 10
"""How many there are if no time is given."""
WINDOWS = 4
"""How many windows of text the best are judged by; all by one of them."""
_CHILDREN, _JUDGED_AGAIN = 8, 2
_STEPS = (0.02, 0.05, 0.1)
_MOST = 0.95
_TIME = re.compile(r"(\d{1,5}(?:\.\d{1,3})?)([smh])")

Losses = Callable[[Sequence[np.ndarray], int | None], list[float]]
"""Of amounts of groups, judged by one window or all: what the model loses."""


def seconds_of(text: str) -> float:
    """What "20m" means, or "90s", or "1.5h". Raises SourceError."""
    match = _TIME.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise SourceError(f"{text!r} is not a time to search; write it like 20m, 90s or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def journal_of(path: Path, key: str = "") -> Journal:
    """What a search keeps beside a bundle that is to be `path`."""
    return Journal(path.with_name(path.name + ".part.search"), key)


class Search:
    """A search for the amounts of groups that add up to `amount` of all their weights.

    judge: of the model. seconds: after which no generation begins, those of an interrupted search counted in; None for
    GENERATIONS. journal: where it is kept after each. losses: of `losses_here` or `cluster.losses_there`.
    """

    def __init__(self, judge: Judge, amount: float, seconds: float | None, journal: Journal, losses: Losses) -> None:
        self.groups = groups_of(judge.source)
        self._judge, self._amount, self._seconds, self._journal, self._losses = judge, amount, seconds, journal, losses
        self._weights = np.array([group.weights for group in self.groups], np.float64)
        self.generation, self.best, self.loss, self._spent = 0, np.full(len(self.groups), amount), np.inf, 0.0
        self.uniform = np.inf
        """What is lost with one amount for all."""

    def run(self, progress: Callable[[str, int, int], None]) -> np.ndarray:
        """The amounts of groups. progress(what, done, in all). Raises SourceError."""
        if (entry := self._journal.read()) is not None:
            self.generation, self.loss, self._spent, self.uniform = (
                entry.state[name] for name in ("generation", "loss", "spent", "uniform"))
            self.best = entry.arrays["best"]
        since = time.monotonic() - self._spent
        if self.uniform == np.inf:
            starts = [self.best, self.start()]
            losses = self._losses(starts, None)
            self.uniform = losses[0]
            self.best, self.loss = starts[int(np.argmin(losses))], min(losses)
            self._keep(since)
        while self._goes_on(since):
            of = self._seconds or GENERATIONS
            done = time.monotonic() - since if self._seconds else self.generation
            progress(f"searching: {self.loss:.4f}, {self.uniform:.4f} if all alike", int(done), int(of))
            self._next()
            self._keep(since)
        return self.best

    def _goes_on(self, since: float) -> bool:
        if self._seconds is None:
            return self.generation < GENERATIONS
        return time.monotonic() - since < self._seconds

    def _keep(self, since: float) -> None:
        self._spent = time.monotonic() - since
        with contextlib.suppress(OSError):
            self._journal.write(Entry({}, {}, {"generation": self.generation, "loss": self.loss, "spent": self._spent,
                                               "uniform": self.uniform}, {"best": self.best}))

    def start(self) -> np.ndarray:
        """More of what changes its products less: as much more or less as its error is, by logarithm."""
        errors = np.log(np.maximum(self._judge.errors(self.groups, self._amount), 1e-12))
        return self._to_sum(self._amount * (1 - 0.25 * (errors - errors.mean()) / max(errors.std(), 1e-6)))

    def _to_sum(self, amounts: np.ndarray) -> np.ndarray:
        """Amounts moved alike until they add up."""
        target = self._amount * self._weights.sum()
        for _ in range(50):
            amounts = np.clip(amounts + (target - amounts @ self._weights) / self._weights.sum(), 0, _MOST)
        return amounts

    def _next(self) -> None:
        random = np.random.default_rng([self.generation, len(self.groups)])
        children = [self._child(random) for _ in range(_CHILDREN)]
        window = self.generation % len(self._judge.windows)
        first = self._losses(children, window)
        again = [children[i] for i in np.argsort(first, kind="stable")[:_JUDGED_AGAIN]]
        losses = self._losses(again, None)
        if min(losses) < self.loss:
            self.best, self.loss = again[int(np.argmin(losses))], min(losses)
        self.generation += 1

    def _child(self, random: np.random.Generator) -> np.ndarray:
        """The parent with one to four pairs of groups changed; of the same sum."""
        child = self.best.copy()
        for _ in range(random.integers(1, 5)):
            more, less = random.choice(len(child), 2, replace=False)
            step = min(random.choice(_STEPS) * min(self._weights[more], self._weights[less]),
                       (_MOST - child[more]) * self._weights[more], child[less] * self._weights[less])
            child[more] += step / self._weights[more]
            child[less] -= step / self._weights[less]
        return child


def by_name(groups: Sequence[Group], amounts: np.ndarray) -> dict[str, float]:
    """The amount of each matrix."""
    return {name: float(amount) for group, amount in zip(groups, amounts, strict=True) for name in group.names}


def losses_here(judge: Judge) -> Losses:
    """Judged in this process, one after another."""
    groups = groups_of(judge.source)
    return lambda candidates, window: [judge.loss(by_name(groups, amounts), window) for amounts in candidates]


def losses_there(judge: Judge, ray: Any) -> Losses:
    """Judged by the workers of a Ray cluster, which find the source at the same path. Raises ClusterError."""
    from edgert.converters.cluster import failures

    groups, shared = groups_of(judge.source), ray.put(judge)
    remote = ray.remote(max_retries=-1)(_loss)

    def losses(candidates: Sequence[np.ndarray], window: int | None) -> list[float]:
        with failures(ray):
            found: list[float] = ray.get([remote.remote(shared, by_name(groups, amounts), window)
                                          for amounts in candidates])
        return found

    return losses


def _loss(judge: Judge, amounts: Mapping[str, float], window: int | None) -> float:
    return judge.loss(amounts, window)
