"""Sparse models: groups of zeros are left out and not read, and no bit of the logits changes."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_file import FaultyFile
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engine import cancelled_again_and_again, make_engine

from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.engine.engine import Engine, NewTokens, Programs
from edgert.engine.program_builder import Kind
from edgert.engine.session import Session
from edgert.errors import BundleError, EdgertError, ModelError
from edgert.kernels import native
from edgert.kernels.records import ABSENT, WAIT, Code
from edgert.memory.plan import Planner
from edgert.memory.window import least_slots
from edgert.residency.device import Device
from edgert.residency.file import FlashFile
from edgert.residency.window import Window

sys.path.append(str(Path(__file__).parents[2] / "large"))
import make_sparse

TOKENS = make_sparse.text(600, 24, seed=1)


@pytest.fixture(scope="module", params=[("tiny-opt", "q4"), ("tiny-reglu", "q4"), ("tiny-reglu", "f16")], ids=repr)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    shape, preset = request.param
    folder = tmp_path_factory.mktemp("sparse")
    model, text = make_sparse.write(folder / "model", shape, active=0.01), folder / "text"
    text.write_text((model / "calibration.txt").read_text()[:2600])
    convert(str(model), folder / "m.edge", preset, texts=[text])
    with Bundle(folder / "m.edge") as opened:
        yield opened


def all_logits(engine: Engine, *, pieces: int = len(TOKENS)) -> np.ndarray:
    """The bits of the logits after every token, so many at a time."""
    session = Session(engine.config, 64, "f32")
    every = [engine.forward(session, TOKENS[at:at + pieces], range(len(TOKENS[at:at + pieces])))
             for at in range(0, len(TOKENS), pieces)]
    session.close()
    return np.concatenate(every).view(np.int32)


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> np.ndarray:
    """What every group gives, whether it is needed or not: the programs are those without what chooses."""
    engine = make_engine(bundle)
    programs = engine._programs[Kind.ONE]
    engine._programs[Kind.ONE] = Programs(*(program[program[:, 0] != Code.CHOOSE] for program in programs))
    engine._buffers.chosen[:] = WAIT
    every = all_logits(engine, pieces=1)
    engine.close()
    return every


def window_alone(bundle: Bundle) -> dict[str, Any]:
    """Options of an engine that reads nothing but neuron groups."""
    embedding = 0.0 if bundle.header.config.tie_word_embeddings else 1.0
    return {"keep": 0.2, "attention": 1.0, "head": 1.0, "embedding": embedding}


def test_most_groups_are_not_needed(bundle: Bundle) -> None:
    """So the other tests test something; and neurons stand in the order of how often they are active."""
    engine, session = make_engine(bundle), Session(bundle.header.config, 64, "f32")
    groups, needed = bundle.header.neurons[-1].groups, []
    for token in TOKENS:
        engine.forward(session, [token])
        needed.append(engine._buffers.chosen[:groups] != ABSENT)
    shares = np.mean(needed, 0)
    assert 0.03 < shares.mean() < 0.6
    assert shares[:groups // 4].mean() > 2 * shares[groups // 2:].mean()
    for activity in bundle.header.activity:
        assert activity == sorted(activity, reverse=True) and 100 < activity[0] < 6000 and activity[-1] < 100
    engine.close()


@settings(max_examples=7)
@given(keep=st.sampled_from([0.0, 0.5, 0.8, 1.0]), attention=st.sampled_from([0.0, 0.5, 1.0]),
       head=st.sampled_from([0.0, 1.0]), threads=st.integers(1, 4), readers=st.integers(1, 5),
       pieces=st.sampled_from([3, 24]), chunk=st.sampled_from([4, 64]))
def test_the_same_at_every_placement(bundle: Bundle, expected: np.ndarray, pieces: int, **options: Any) -> None:
    engine = make_engine(bundle, **options)
    engine._team.set(patience=20 * 10 ** 9)
    assert np.array_equal(all_logits(engine, pieces=pieces), expected)
    assert np.array_equal(all_logits(engine, pieces=1), expected)
    engine.close()


def test_planned_for_any_budget(bundle: Bundle, expected: np.ndarray) -> None:
    """What is planned keeps to the budget, and works; a larger budget is not expected to take longer."""
    device = Device("a test's", True, 1 << 16, 2, 1e9, 1e-4, [])
    planner = Planner(bundle.header, process=0, context=64, cache_type="f32", chunk=64, threads=2)
    smallest, whole, reading = planner.smallest(device), planner.whole, []
    for budget in np.linspace(smallest, whole, 6).astype(int).tolist():
        plan = planner.plan(budget, lambda: device)
        assert plan.needed <= budget
        placement = plan.placement
        least = least_slots(bundle.header)
        assert (plan.disk is None) == (not placement.window)
        assert all(placement.window[size] >= count for size, count in least.items() if placement.window)
        reading.append(plan.streamed)
        engine = Engine(bundle, FlashFile(bundle.path), native.library(), placement, chunk=plan.chunk, threads=2,
                        context=64, cache_type="f32", logit_rows=plan.verify_rows)
        assert np.array_equal(all_logits(engine, pieces=5), expected)
        engine.close()
    assert reading[-1] == 0 and max(reading) > 0
    with pytest.raises(ModelError, match="too small"):
        planner.plan(smallest - 1, lambda: device)


def test_only_what_is_needed_is_read(bundle: Bundle) -> None:
    """One token after another: less than a third of the neurons, and less still where more of them stay."""
    read = []
    for keep in (0.2, 0.6):
        engine = make_engine(bundle, keep=keep, attention=1.0, head=1.0)
        assert isinstance(engine.source, Window)
        all_logits(engine, pieces=1)
        read.append(engine.source.reading.bytes / len(TOKENS))
        engine.close()
    every = sum(n.groups * n.group_bytes for n in bundle.header.neurons)
    assert read[1] < read[0] < every / 3


def test_drafts_take_what_is_there_and_ask_for_nothing(bundle: Bundle, expected: np.ndarray) -> None:
    engine = make_engine(bundle, keep=0.5, attention=1.0, head=1.0, chunk=17)
    assert engine.drafts and isinstance(engine.source, Window)
    session = Session(engine.config, 64, "f32")
    for at in range(0, len(TOKENS), 4):
        before = engine.source.reading.bytes
        for token in TOKENS[at:at + 4]:
            assert np.isfinite(engine.draft(session, token)).all()
        assert engine.source.reading.bytes == before
        session.truncate(at)
        logits = engine.verify([NewTokens(session, TOKENS[at:at + 4])])[0]
        assert np.array_equal(logits.view(np.int32), expected[at:at + 4])
    engine.close()


@pytest.mark.parametrize("fault", ["error", "flip", "unforeseen"])
def test_every_read_made_to_fail_in_turn(bundle: Bundle, fault: str) -> None:
    """While the window is filled, and while it is used: one error, again at the next call; closing works."""
    options = window_alone(bundle) | {"readers": 3}
    file = FaultyFile(bundle.path, -1, fault)
    engine = make_engine(bundle, file=file, **options)
    loading = file.reads
    all_logits(engine, pieces=1)
    engine.close()
    for number in range(loading, file.reads, 13):
        faulty = FaultyFile(bundle.path, number, fault)
        engine = make_engine(bundle, file=faulty, **options)
        if fault == "unforeseen":
            for _ in range(2):
                with pytest.raises(ModelError, match="reading failed: ZeroDivisionError"):
                    all_logits(engine, pieces=1)
        else:
            faulty.again = 2
            for _ in range(2):
                with pytest.raises(BundleError, match="input/output error" if fault == "error" else "damaged"):
                    all_logits(engine, pieces=1)
        engine.close()


@pytest.mark.parametrize("fault", ["error", "flip"])
def test_a_read_that_fails_once_is_done_again(bundle: Bundle, expected: np.ndarray, fault: str) -> None:
    file = FaultyFile(bundle.path, 60, fault, again=0)
    engine = make_engine(bundle, file=file, **window_alone(bundle))
    assert np.array_equal(all_logits(engine, pieces=1), expected)
    engine.close()


def test_cancelled_at_any_moment_and_done_again(bundle: Bundle, expected: np.ndarray) -> None:
    """What was asked for is forgotten, nothing is left in a slot of another group."""
    engine = make_engine(bundle, keep=0.2, attention=0.5, head=0.5, readers=3)
    assert engine._weights._window is not None
    assert cancelled_again_and_again(engine, engine._weights._window, TOKENS, expected) > 3
    engine.close()


def test_closed_while_reading(bundle: Bundle) -> None:
    """A disk that does not answer ends as one error, and closing does not wait for it."""
    file = FaultyFile(bundle.path, -1, "hang")
    engine = make_engine(bundle, file=file, **window_alone(bundle))
    engine._team.set(patience=2 * 10 ** 8)
    file.fail_at = file.reads + 3
    with pytest.raises(EdgertError, match="does not answer"):
        all_logits(engine, pieces=1)
    engine.close()
    file.hang.set()


def test_those_needed_last_stay(bundle: Bundle) -> None:
    """No group outside the window was needed later than one inside, whatever came."""
    engine = make_engine(bundle, keep=0.5, attention=1.0, head=1.0)
    window, session = engine._weights._window, Session(bundle.header.config, 64, "f32")
    assert window is not None
    for token in TOKENS:
        engine.forward(session, [token])
        for pool in window._pools.values():
            indices = np.concatenate([np.arange(of.first, of.first + of.units.count) for of in window._layers
                                      if of.pool is pool])
            there = np.isin(indices, pool.held)
            assert 0 < there.sum() < len(indices) and np.all(window._table.entries[indices[there]] > 0)
            assert not window._table.entries[indices[~there]].any()
            assert window._used[indices[~there]].max() <= window._used[indices[there]].min()
    engine.close()
