"""Weights that come while the kernels wait for them, and are given back when they have been used."""

import threading
import time

import numpy as np
import pytest
import rig
from weights_for import FORMAT_NAMES, matrix, values

from edgert.kernels.formats import FORMATS
from edgert.kernels.semaphores import Semaphores
from edgert.kernels.team import PATIENCE


@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("threads", [1, 3])
def test_slabs_that_come_one_by_one(target: str, name: str, threads: int) -> None:
    rng, team = np.random.default_rng(0), rig.team(target, threads)
    weights = matrix(rng, FORMATS[name], "ordinary", 600, 70)
    x = rig.activations(team, weights.form, values(rng, "ordinary", (1, 70)))
    there = rig.slab_addresses(weights.packed)
    expected, _ = rig.slabs(team, weights.form, weights.packed, x, 1, there.copy())
    freed = Semaphores(1)
    team.set(freed=int(freed.table[0]))
    left = np.array([4, len(there) - 5], np.int64)  # units in two slots, and one that stays
    counters = np.repeat(left.ctypes.data + 8 * np.arange(2), left)
    counters = np.append(counters, 0)
    table = np.zeros_like(there)
    table[-1] = there[-1]

    def arrive() -> None:
        for i in range(len(there) - 1):
            time.sleep(0.002)
            table[i] = there[i]

    thread = threading.Thread(target=arrive)
    thread.start()
    got, ended = rig.slabs(team, weights.form, weights.packed, x, 1, table, counters)
    thread.join()
    assert ended and np.array_equal(got, expected)
    assert not left.any() and not table[:-1].any() and table[-1] == there[-1]
    for _ in range(2):
        freed.wait(0)  # posted once for each slot: this does not wait
    assert team.waited_s > 0


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("stop", [False, True])
def test_slabs_that_do_not_come(target: str, threads: int, stop: bool) -> None:
    """All threads end, be it that somebody says so or that they have waited long enough."""
    rng, team = np.random.default_rng(0), rig.team(target, threads)
    weights = matrix(rng, FORMATS["q4"], "ordinary", 600, 70)
    x = rig.activations(team, weights.form, values(rng, "ordinary", (1, 70)))
    table = rig.slab_addresses(weights.packed)
    there, table[5] = int(table[5]), 0
    timer = threading.Timer(0.05, lambda: team.set(stop=1))
    if stop:
        timer.start()
    else:
        team.set(patience=20)
    assert not rig.slabs(team, weights.form, weights.packed, x, 1, table)[1]
    assert team.stopped == (1 if stop else 2)
    timer.cancel()
    team.set(stop=0, patience=PATIENCE)
    table[5] = there
    assert rig.slabs(team, weights.form, weights.packed, x, 1, table)[1], "the team is as good as new"
