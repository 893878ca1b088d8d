"""The order in which a window gives its slots away."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.residency import least_recent
from edgert.residency.least_recent import LeastRecent
from edgert.residency.on_demand import NOBODY, Pool
from edgert.residency.region import Region

SLOTS, ENTRIES = 24, 60


@pytest.fixture(autouse=True)
def _few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_recent, "_AT_ONCE", 5)


@given(st.data(), st.booleans())
def test_those_needed_longest_ago_and_none_twice(data: st.DataObject, exact: bool) -> None:
    """As a list that is sorted each time says, whatever is taken, given and emptied in between; but where some are
    spared or coming, which may be taken later than that."""
    region = Region(SLOTS * 64, "a test")
    pool = Pool(region, 64)
    used, coming, spared = np.zeros(ENTRIES, np.int64), np.zeros(ENTRIES, bool), np.zeros(ENTRIES, np.int64)
    filled = data.draw(st.integers(0, SLOTS))
    pool.held[:filled] = np.arange(filled)
    order, random = LeastRecent(pool, used, coming), np.random.default_rng(data.draw(st.integers(0, 999)))
    for now in range(1, 12):
        needed = np.flatnonzero((random.random(ENTRIES) < 0.2) & np.isin(np.arange(ENTRIES), pool.held))
        used[needed] = now
        spared[random.integers(0, ENTRIES, 3)] = now
        for _ in range(3):
            count = int(random.integers(0, 9))
            by_choice = spared if not exact and random.random() < 0.3 else None
            empty = set(np.flatnonzero(pool.held == NOBODY).tolist())
            free = [slot for slot in range(SLOTS) if slot not in empty and used[pool.held[slot]] < now
                    and not coming[pool.held[slot]] and (by_choice is None or spared[pool.held[slot]] != now)]
            taken = order.take(count, now, by_choice).tolist()
            assert len(set(taken)) == len(taken) == min(count, len(empty) + len(free))
            assert set(taken) <= empty | set(free)
            of_taken = sorted(used[pool.held[slot]] for slot in taken if slot not in empty)
            assert not exact or of_taken == sorted(used[pool.held[slot]] for slot in free)[:len(of_taken)]
            assert len(of_taken) == max(count - len(empty), 0) or len(of_taken) == len(free)
            for slot in taken:
                absent = np.setdiff1d(np.arange(ENTRIES), pool.held)
                pool.held[slot] = random.choice(absent)
                coming[pool.held[slot]] = not exact and random.random() < 0.3
                if not coming[pool.held[slot]]:
                    used[pool.held[slot]] = now
        gone = [slot for slot in range(SLOTS) if pool.held[slot] != NOBODY and random.random() < 0.1]
        coming[:] = False
        pool.held[gone] = NOBODY
        order.emptied(gone)
    region.close()
