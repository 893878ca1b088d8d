"""Mixtures of experts: what is in the cache of experts decides the speed, and no bit of the logits."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_file import FaultyFile
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engine import cancelled_again_and_again, make_engine, use_plan
from tiny_model import change_header, give_tokenizer, write_bundle, write_model

import edgert
from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.engine.engine import Engine
from edgert.engine.session import Session
from edgert.engine.tracing import Trace
from edgert.errors import BundleError, EdgertError, ModelError
from edgert.kernels import expert_units, native
from edgert.kernels.records import WAIT
from edgert.memory.plan import Planner
from edgert.memory.window import expected_bytes, expected_hits, least_slots, slots_in
from edgert.residency.device import Device
from edgert.residency.experts import ExpertCache
from edgert.residency.file import FlashFile
from edgert.residency.on_demand import NOBODY
from edgert.residency.region import Region

SHAPE: dict[str, Any] = {
    "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 150, "num_hidden_layers": 4, "vocab_size": 90,
    "num_local_experts": 12, "num_experts_per_tok": 3, "size": 0.4}
CHANCE = random.Random(3)
TOKENS = [CHANCE.randrange(90) for _ in range(3) for word in range(8)]


@pytest.fixture(scope="module", params=["q4", "f32"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """With three units an expert, the last with fewer groups than the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert_units, "UNIT_BYTES", {"q4": 1 << 13, "f32": 1 << 16}[request.param])
        path = write_bundle(tmp_path_factory.mktemp("experts") / "m.edge", request.param, **SHAPE)
    with Bundle(path) as opened:
        units = opened.header.neurons[0].expert_units(opened.header.config)
        assert units.per_expert > 1 and units.groups_of(units.per_expert - 1) < units.in_unit
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
    engine = make_engine(bundle)
    every = all_logits(engine, pieces=1)
    engine.close()
    return every


def cached(bundle: Bundle, slots: int, **options: Any) -> Engine:
    """An engine that has room for so many experts of each size, and reads nothing else."""
    options = {"keep": 0.5, "attention": 1.0, "head": 1.0, "embedding": 0.0} | options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("small_engine.slots_in", lambda header, size: dict.fromkeys(least_slots(header), slots))
        engine = make_engine(bundle, **options)
    engine._team.set(patience=20 * 10 ** 9)
    return engine


def cache_of(engine: Engine) -> ExpertCache:
    cache = engine._weights._window
    assert isinstance(cache, ExpertCache)
    return cache


@settings(max_examples=8, deadline=None)
@given(keep=st.sampled_from([0.0, 0.3, 0.7, 1.0]), attention=st.sampled_from([0.0, 1.0]),
       head=st.sampled_from([0.0, 1.0]), threads=st.integers(1, 4), readers=st.integers(1, 5),
       pieces=st.sampled_from([2, 7, 24]), chunk=st.sampled_from([4, 64]))
def test_the_same_at_every_placement(bundle: Bundle, expected: np.ndarray, pieces: int, **options: Any) -> None:
    engine = make_engine(bundle, **options)
    engine._team.set(patience=20 * 10 ** 9)
    assert np.array_equal(all_logits(engine, pieces=pieces), expected)
    assert np.array_equal(all_logits(engine, pieces=1), expected)
    engine.close()


@pytest.mark.parametrize(("slots", "threads"), [(1, 1), (1, 3), (2, 3), (3, 1), (20, 3)])
def test_in_turns_where_a_token_needs_more_than_there_is_room_for(bundle: Bundle, expected: np.ndarray, slots: int,
                                                                  threads: int) -> None:
    for chunk in (1, 24):
        engine = cached(bundle, slots, threads=threads, chunk=chunk)
        assert np.array_equal(all_logits(engine), expected)
        engine.close()


def test_only_experts_that_are_needed_are_read(bundle: Bundle) -> None:
    """A token after another: what is not in the cache, and guesses."""
    config, read = bundle.header.config, []
    for slots in (3, 12, 48):
        engine = cached(bundle, slots)
        all_logits(engine, pieces=1)
        cache = cache_of(engine)
        cache.expect(0)
        counted, size = cache.counted, max(n.choices(config)[1] for n in bundle.header.neurons)
        assert counted.needed == len(TOKENS) * config.num_hidden_layers * config.experts_per_token
        read.append(cache.reading.bytes)
        assert read[-1] <= (counted.missed + counted.read_ahead) * size
        assert counted.right <= counted.guessed and counted.read_ahead <= counted.guessed
        engine.close()
    assert read[0] > read[2]  # what is read on guesses depends on how fast things are
    assert read[2] <= sum(n.groups * n.group_bytes for n in bundle.header.neurons)


def test_planned_for_any_budget(bundle: Bundle, expected: np.ndarray) -> None:
    """What is planned keeps to the budget, and works; a larger one is not expected to read more."""
    device = Device("a test's", True, 1 << 16, 2, 1e9, 1e-4, [])
    planner = Planner(bundle.header, process=0, context=64, cache_type="f32", chunk=64, threads=2)
    smallest, whole, reading = planner.smallest(device), planner.whole, []
    for budget in np.linspace(smallest, whole, 5).astype(int).tolist():
        plan = planner.plan(budget, lambda: device)
        assert plan.needed <= budget and (plan.disk is None) == (not plan.placement.window)
        assert plan.parts["experts"] > 0 or plan.disk is None
        reading.append(plan.streamed)
        engine = Engine(bundle, FlashFile(bundle.path), native.library(), plan.placement, chunk=plan.chunk, threads=2,
                        context=64, cache_type="f32", logit_rows=plan.verify_rows)
        assert not engine.drafts and np.array_equal(all_logits(engine, pieces=5), expected)
        engine.close()
    assert reading[-1] == 0
    if bundle.header.quantization["preset"] == "f32":  # at 4 bits all of it is smaller than what reading takes
        assert max(reading) > 0
    with pytest.raises(ModelError, match="too small"):
        planner.plan(smallest - 1, lambda: device)


def test_bytes_that_are_expected_are_those_of_misses_and_wrong_guesses(bundle: Bundle) -> None:
    """More than what is needed and not there, and nothing where there is room for all."""
    header, config = bundle.header, bundle.header.config
    needed = config.experts_per_token * sum(n.choices(config)[1] for n in header.neurons)
    for size in (0, 1 << 16, 1 << 18, 1 << 40):
        slots = slots_in(header, size)
        missed, read = (1 - expected_hits(header, slots)) * needed, expected_bytes(header, slots)
        assert read == pytest.approx(1.1 * missed, rel=0.001, abs=1)
        assert (read == 0) == (size == 1 << 40)


@pytest.mark.parametrize("fault", ["error", "flip", "unforeseen"])
def test_every_read_made_to_fail_in_turn(bundle: Bundle, fault: str) -> None:
    """One error, again at the next call; closing works."""
    file = FaultyFile(bundle.path, -1, fault)
    engine = cached(bundle, 6, file=file)
    loading = file.reads
    all_logits(engine, pieces=3)
    engine.close()
    for number in range(loading, file.reads, max((file.reads - loading) // 12, 1)):
        faulty = FaultyFile(bundle.path, number, fault)
        faulty.again = 0 if fault == "unforeseen" else 2
        engine = cached(bundle, 6, file=faulty)
        kind, what = (ModelError, "reading failed: ZeroDivisionError") if fault == "unforeseen" else (
            BundleError, "input/output error" if fault == "error" else "damaged")
        with pytest.raises(kind, match=what):
            for _ in range(3):  # what fails may be a guess that no token needs
                all_logits(engine, pieces=3)
            engine.source.check()
            pytest.skip("it was read in another order, and nothing failed")
        with pytest.raises(kind, match=what):
            all_logits(engine, pieces=3)
        engine.close()


@pytest.mark.parametrize("fault", ["error", "flip"])
def test_a_read_that_fails_once_is_done_again(bundle: Bundle, expected: np.ndarray, fault: str) -> None:
    file = FaultyFile(bundle.path, -1, fault, again=0)
    engine = cached(bundle, 6, file=file)
    file.fail_at = file.reads + 9
    assert np.array_equal(all_logits(engine, pieces=1), expected)
    assert file.read_again == 1
    engine.close()


def test_cancelled_at_any_moment_and_done_again(bundle: Bundle, expected: np.ndarray) -> None:
    """What was asked for is forgotten, nothing is left in a slot of another expert."""
    engine = cached(bundle, 5, readers=3)
    assert cancelled_again_and_again(engine, cache_of(engine), TOKENS, expected) > 3
    engine.close()


def test_closed_while_reading(bundle: Bundle) -> None:
    """A disk that does not answer ends as one error, and closing does not wait for it."""
    file = FaultyFile(bundle.path, -1, "hang")
    engine = cached(bundle, 6, file=file)
    engine._team.set(patience=2 * 10 ** 8)
    file.fail_at = file.reads + 3
    with pytest.raises(EdgertError, match="does not answer"):
        all_logits(engine, pieces=1)
    engine.close()
    file.hang.set()


def test_what_the_table_says_is_in_the_slots(bundle: Bundle) -> None:
    """After every pass each slot has one expert and each expert one slot; units that are not there are waited for."""
    engine, session = cached(bundle, 9, chunk=8), Session(bundle.header.config, 64, "f32")
    cache, chance = cache_of(engine), random.Random(5)
    at = 0
    while at < len(TOKENS):
        count = chance.randint(1, 5)
        engine.forward(session, TOKENS[at:at + count])
        at += count
        with cache._quiet:
            cache._wait_until_quiet()
            for pool in cache._pools.values():
                held = pool.held[pool.held >= 0]
                assert len(set(held.tolist())) == len(held)
                assert np.array_equal(cache._slot[held], np.flatnonzero(pool.held >= 0))
            for expert in range(len(cache._slot)):
                there = cache._entries(expert) != WAIT
                assert there.sum() == (0 if cache._slot[expert] < 0 else len(there) - cache._left[expert])
    engine.close()


def test_room_is_promised_until_it_is_used(bundle: Bundle) -> None:
    """Another model that is planned meanwhile counts on what this one may still take."""
    before, engine = Region.promised, cached(bundle, 500)
    pools = cache_of(engine)._pools.values()
    size, loaded = sum(pool.region.size for pool in pools), Region.promised
    assert loaded - before >= size
    for _ in range(2):
        engine.forward(session := Session(bundle.header.config, 64, "f32"), TOKENS)
        session.pool.close()
        used = sum(int((pool.held != NOBODY).sum()) * pool.slot_bytes for pool in pools)
        assert 0 < used < size and loaded - Region.promised == used, "what is used again is not counted again"
    engine.close()
    assert Region.promised == before


def test_an_expert_that_a_kernel_has_just_asked_for_keeps_its_place(bundle: Bundle) -> None:
    """In the moment between its leaving the table and the look at what is needed."""
    engine = cached(bundle, 6)
    all_logits(engine, pieces=1)
    cache = cache_of(engine)
    cache.expect(0)
    with cache._quiet:
        cache._wait_until_quiet()
    first, second = np.flatnonzero((cache._slot >= 0) & (cache._left == 0))[:2].tolist()
    before = cache._entries(first).copy()

    class Late:
        def __enter__(self) -> None:
            assert not cache._entries(first).any()
            cache._needed[first] = cache._time[0]

        def __exit__(self, *_: object) -> None:
            pass

    fence, cache._fence = cache._fence, Late()  # type: ignore[assignment]
    assert not cache._take_out(first) and np.array_equal(cache._entries(first), before) and before.all()
    cache._fence = fence
    assert cache._take_out(second) and not cache._entries(second).any() and cache._slot[second] < 0
    engine.close()


def test_answers_in_which_what_followed_before_is_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those without guesses; with ReLU the neurons of an expert are computed together all the same."""
    folder = give_tokenizer(write_model(tmp_path / "model", **SHAPE | {"vocab_size": 258, "hidden_act": "relu"}))
    path = tmp_path / "m.edge"
    convert(str(folder), path, "q4")
    prompt, settings = "abcabcabcabcabcabc", {"max_tokens": 24, "ignore_eos": True}
    use_plan(monkeypatch, path, keep=0.4, attention=1.0, head=1.0, chunk=16, rows=8)
    with edgert.load(path, threads=2, context=64, speculation="off") as model:
        expected = [piece.text for piece in model.generate(prompt, **settings)]
    with edgert.load(path, threads=2, context=64, speculation="auto") as model:
        for _ in range(3):
            assert [piece.text for piece in model.generate(prompt, **settings)] == expected
        assert model.expert_counts is not None and model.expert_counts.needed > 0


def test_a_trace_names_experts_and_their_operations(bundle: Bundle, tmp_path: Path) -> None:
    engine, trace = cached(bundle, 6), Trace(tmp_path / "trace.json")
    engine.trace(trace)
    all_logits(engine, pieces=1)
    engine.close()
    trace.close()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {"choosing experts", "asking for experts", "experts", "experts, sums"} <= {event["name"] for event in events}
    parts = {event["args"]["part"] for event in events if event.get("args", {}).get("part")}
    assert any(part.endswith(", a guess") for part in parts) and "expert 3" in {part[:8] for part in parts}


def test_a_bundle_whose_experts_are_not_as_its_header_says(bundle: Bundle, tmp_path: Path) -> None:
    def forged(name: str, change: Any) -> str:
        path = change_header(bundle.path, tmp_path / name, change)
        with pytest.raises(BundleError) as error:
            Bundle(path)
        return str(error.value)

    def groups(number: int) -> Any:
        return lambda header: header["neurons"][0].update(groups=number)

    for number in (0, 1, 11, 13, 1 << 40):
        assert "header is not valid" in forged(f"{number}.edge", groups(number))
    assert "experts for each token" in forged("a", lambda header: header["config"].update(num_experts_per_tok=13))
    assert "num_experts is 0" in forged("b", lambda header: header["config"].update(num_experts=0))
    assert "norm_topk_prob" in forged("c", lambda header: header["config"].update(norm_topk_prob=1))
    assert "activity" in forged("d", lambda header: header["quantization"].update(activity=[]))
