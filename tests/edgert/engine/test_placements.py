"""Where each plane of the weights is decides nothing but speed: whatever stays, the logits are the same to the bit.
Of sparse models: test_sparse_models.py.

And so they are for chains that are checked at once, whatever was drafted before.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_file import FaultyFile
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engine import make_engine
from tiny_model import write_bundle

from edgert.bundle import Bundle
from edgert.bundle.header import HEAD
from edgert.engine.engine import Engine, NewTokens
from edgert.engine.session import Session
from edgert.engine.worker import CancelledError
from edgert.errors import EdgertError, ModelError
from edgert.kernels.formats import SLAB, TILE
from edgert.kernels.records import ABSENT, CANCELLED
from edgert.residency.drafting import Drafting
from edgert.residency.file import FlashFile
from edgert.residency.stream import Stream

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 19, 0, 200, 250, 3, 3]
SHAPE = {"num_hidden_layers": 3, "intermediate_size": 700, "vocab_size": 300, "hidden_size": 96,
         "num_attention_heads": 6, "num_key_value_heads": 2}


@pytest.fixture(scope="module", params=["q4", "q8", "f32", "pruned"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    path = tmp_path_factory.mktemp("placements") / "m.edge"
    tied, pruned = request.param not in ("q4", "pruned"), request.param == "pruned"
    with Bundle(write_bundle(path, "q4" if pruned else request.param, size=0.2, tie_word_embeddings=tied, pruned=pruned,
                             **SHAPE)) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> np.ndarray:
    engine = make_engine(bundle)
    every = all_logits(engine)
    engine.close()
    return every


def session_of(engine: Engine) -> Session:
    return Session(engine.config, 32, "f32")


def all_logits(engine: Engine, *, one_by_one: bool = False) -> np.ndarray:
    """The bits of the logits after every token."""
    session = session_of(engine)
    parts = [[t] for t in TOKENS] if one_by_one else [TOKENS]
    every = [engine.forward(session, part, range(len(part))) for part in parts]
    session.close()
    return np.concatenate(every).view(np.int32)


shares = st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0])


@settings(max_examples=8)
@given(keep=shares, details=shares, attention=shares, head=shares, threads=st.integers(1, 4), chunk=st.integers(1, 20),
       chunk_bytes=st.sampled_from([1, 1 << 12, 1 << 13, 1 << 16]), readers=st.integers(1, 5))
def test_the_same_at_every_placement(bundle: Bundle, expected: np.ndarray, **options: Any) -> None:
    """With as many slots as are planned it never gets stuck."""
    engine = make_engine(bundle, **options)
    engine._team.set(patience=20 * 10 ** 9)
    assert np.array_equal(all_logits(engine), expected)
    assert np.array_equal(all_logits(engine, one_by_one=True), expected)
    engine.close()


@settings(max_examples=15)
@given(keep=shares, details=shares, head=shares, threads=st.integers(1, 3), rows=st.sampled_from([4, 17]),
       cuts=st.sets(st.integers(1, len(TOKENS) - 1), max_size=6), data=st.data())
def test_a_chain_that_is_checked_is_what_each_token_is_alone(
        bundle: Bundle, expected: np.ndarray, keep: float, details: float, head: float, threads: int, rows: int,
        cuts: set[int], data: st.DataObject) -> None:
    """Of any length, after drafts of anything."""
    engine = make_engine(bundle, keep=keep, details=details, head=head, attention=1.0, threads=threads, chunk=17,
                         rows=rows)
    session, at = session_of(engine), 0
    for first, last in zip([0, *sorted(cuts)], [*sorted(cuts), len(TOKENS)], strict=True):
        if engine.drafts:
            for token in data.draw(st.lists(st.integers(0, 299), max_size=3)):
                engine.draft(session, token)
            assert session.length >= at
            session.truncate(at)
        logits = engine.verify([NewTokens(session, TOKENS[first:last])])[0]
        assert np.array_equal(logits.view(np.int32), expected[first:last])
        at = last
        assert session.tokens == TOKENS[:at]
    engine.close()


DRAFTING = {"keep": 0.5, "details": 0.2, "attention": 1.0, "head": 0.5}


def test_a_draft_waits_for_nothing_and_takes_nothing(bundle: Bundle, expected: np.ndarray) -> None:
    """The stream is where it was; results are what they are without drafts."""
    engine = make_engine(bundle, **DRAFTING)
    assert engine.drafts and isinstance(engine.source, Stream)
    session = session_of(engine)
    for number, token in enumerate(TOKENS[:10]):
        logits = engine.forward(session, [token])
        assert np.array_equal(logits.view(np.int32)[0], expected[number])
        with engine.source._quiet:
            engine.source._quiet.wait_for(lambda: not engine.source._under_way, 10)
        calls: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            for name in ("expect", "restart", "check"):
                patch.setattr(engine.source, name, lambda *_, called=calls, name=name: called.append(name))
            before, waited = engine.source.reading.bytes, engine.waited_s
            settled = engine.source._free() is None
            for guess in TOKENS[number:number + 4]:
                engine.draft(session, guess)
            if settled:
                assert engine.source.reading.bytes == before
            assert engine.waited_s == waited and calls == []
        session.truncate(number + 1)
    engine.close()


def test_a_draft_takes_nothing_that_was_read_ahead(bundle: Bundle) -> None:
    """What stands in a slot is there for one pass, and gone while the next draft is computed."""
    engine = make_engine(bundle, **DRAFTING)
    assert isinstance(engine.source, Stream)
    with engine.source._quiet:
        assert engine.source._quiet.wait_for(lambda: any(slot.ready for slot in engine.source._slots), 10)
    placement = engine._weights._placement
    drafting = Drafting(engine._weights, bundle.header, placement)
    for n in bundle.header.neurons:
        for name in (n.section, n.details):
            if name is not None:
                assert ((drafting._entries[name] != ABSENT) == (np.arange(n.groups) < placement.pinned[name])).all()
    engine.close()


def test_a_draft_with_all_neurons_is_exact_as_far_as_it_goes(bundle: Bundle, expected: np.ndarray) -> None:
    """Where only a part of the head is streamed, it has the exact logits of its rows."""
    engine = make_engine(bundle, head=0.5)
    assert engine.drafts
    session = session_of(engine)
    rows = engine._drafting.rows
    assert rows == int(0.5 * engine._weights._units[HEAD].count) * SLAB * TILE
    for number, token in enumerate(TOKENS):
        logits = engine.draft(session, token)
        assert logits.shape == (rows,) and logits.dtype == np.float32
        assert np.array_equal(logits.view(np.int32), expected[number, :rows])
    assert session.tokens == TOKENS
    engine.close()


def test_a_draft_is_what_comes_without_the_groups_that_do_not_stay(bundle: Bundle) -> None:
    engine = make_engine(bundle, attention=1.0, keep=0.3, head=1.0)
    whole = make_engine(bundle)
    table = whole._weights._table
    for n in bundle.header.neurons:
        kept = int(0.3 * n.groups)
        assert 0 < kept < n.groups
        table.entries[table.index(n.section, kept):table.index(n.section, n.groups - 1) + 1] = ABSENT
    drafted, exact = session_of(engine), session_of(whole)
    for token in TOKENS:
        logits = engine.draft(drafted, token)
        assert np.array_equal(logits.view(np.int32), whole.forward(exact, [token]).view(np.int32)[0])
    engine.close()
    whole.close()


def test_bases_alone_are_near_the_whole(bundle: Bundle, expected: np.ndarray) -> None:
    """Nearer than without them, so they take part."""
    found = []
    for keep in (0.05, 1.0):
        engine = make_engine(bundle, attention=1.0, keep=keep, details=0.0, head=1.0)
        if not engine.drafts:  # no format of it is split
            engine.close()
            return
        session = session_of(engine)
        found.append(np.stack([engine.draft(session, token).copy() for token in TOKENS]))
        engine.close()
    exact = expected.view(np.float32)
    errors = [float(np.abs(logits - exact).mean()) for logits in found]
    assert 0 < errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("options", [{"attention": 0.5}, {"head": 0.0}, {"keep": 0.0}, {}])
def test_where_there_is_no_draft(bundle: Bundle, options: dict[str, float]) -> None:
    """Something is missing altogether, or nothing is."""
    engine = make_engine(bundle, **({**DRAFTING, **options} if options else {}))
    assert not engine.drafts
    engine.close()


def test_what_a_draft_refuses(bundle: Bundle) -> None:
    engine = make_engine(bundle, **DRAFTING)
    session = Session(engine.config, 3, "f32")
    engine.forward(session, [1, 2])
    for token, message in ((300, "not in the vocabulary"), (-1, "not in the vocabulary")):
        with pytest.raises(ModelError, match=message):
            engine.draft(session, token)
    engine.draft(session, 3)
    with pytest.raises(ModelError, match="the context is full"):
        engine.draft(session, 3)
    cancel = np.array([CANCELLED])
    session.truncate(2)
    with pytest.raises(CancelledError):
        engine.draft(session, 3, cancel=cancel)
    with pytest.raises(CancelledError):
        engine.verify([NewTokens(session, [3])], cancel=cancel)[0]
    assert session.tokens == [1, 2]
    cancel[0] = 0
    assert engine.verify([NewTokens(session, [3])], cancel=cancel)[0].shape == (1, 300)
    engine.close()


def test_a_draft_that_is_not_finite_is_said_so(tmp_path: Path) -> None:
    """It is a guess that failed, and no error."""
    with Bundle(write_bundle(tmp_path / "m.edge", "q4", size=1e13, **SHAPE)) as bundle:
        engine = make_engine(bundle, **DRAFTING)
        session = session_of(engine)
        assert np.isnan(engine.draft(session, 1)).all()
        session.truncate(0)
        with pytest.raises(ModelError, match="not finite"):
            engine.verify([NewTokens(session, [1, 2])])[0]
        assert session.length == 0
        engine.close()


def work(engine: Engine, session: Session, bits: list[np.ndarray]) -> None:
    """Some prompt, then rounds of drafts that are checked, each of which leaves the session longer or as it was."""
    for first in range(0, 12, 4):
        length = session.length
        try:
            for token in TOKENS[first:first + 3]:
                engine.draft(session, token)
        finally:
            session.truncate(length)
        bits.append(engine.verify([NewTokens(session, TOKENS[first:first + 4])])[0].view(np.int32).copy())


@pytest.mark.parametrize("first", [0, pytest.param(1, marks=pytest.mark.reference)])
def test_every_read_made_to_fail_in_turn(bundle: Bundle, expected: np.ndarray, first: int) -> None:
    """By an error and by a flipped bit, in both planes; while loading, drafting and checking: one sentence, and the
    session is as it was."""
    options = {**DRAFTING, "chunk_bytes": 1 << 15, "readers": 2}
    file = FaultyFile(bundle.path, -1, "error")
    engine = make_engine(bundle, file=file, **options)
    loading = file.reads
    work(engine, session_of(engine), bits := [])
    assert np.array_equal(np.concatenate(bits), expected[:12])
    reads = file.reads
    engine.close()
    failed = {"loading": 0, "computing": 0}
    for number in [*range(0, loading, 5), *range(loading - 3, reads)]:
        file = FaultyFile(bundle.path, number, ("error", "flip")[(number + first) % 2])
        try:
            engine = make_engine(bundle, file=file, **options)
        except EdgertError as error:
            assert "\n" not in str(error) and ("checksum" in str(error) or "reading" in str(error))
            failed["loading"] += 1
            continue
        session, bits = session_of(engine), []
        try:
            work(engine, session, bits)
        except EdgertError as error:
            assert "\n" not in str(error) and ("checksum" in str(error) or "reading" in str(error))
            failed["computing"] += 1
        assert session.tokens == TOKENS[:4 * len(bits)]
        for i, each in enumerate(bits):
            assert np.array_equal(each, expected[4 * i:4 * i + 4])
        engine.close()
    assert failed["loading"] > 0 and failed["computing"] > 3


@pytest.mark.parametrize("when", range(0, 40, 3))
def test_cancelled_at_any_moment(bundle: Bundle, expected: np.ndarray, when: int) -> None:
    """While reading, that is while drafting or checking: the session has what was computed, and goes on from there."""
    class Cancelling(FlashFile):
        left = 1 << 30

        def read(self, offset: int, buffer: memoryview, needed: int) -> None:
            self.left -= 1
            if self.left == 0:
                cancel[0] = CANCELLED
            super().read(offset, buffer, needed)

    cancel = np.zeros(1, np.int64)
    file = Cancelling(bundle.path)
    engine = make_engine(bundle, file=file, chunk_bytes=1 << 13, **DRAFTING)
    session, at = session_of(engine), 0
    file.left = when + 1
    while at < 20:
        try:
            for token in TOKENS[at:at + 2]:
                engine.draft(session, token, cancel=cancel)
            session.truncate(at)
            logits = engine.verify([NewTokens(session, TOKENS[at:at + 4])], cancel=cancel)[0]
        except CancelledError:
            assert session.tokens[:at] == TOKENS[:at]
            session.truncate(at)
            cancel[0] = 0
            continue
        assert np.array_equal(logits.view(np.int32), expected[at:at + 4])
        at += 4
    assert session.tokens == TOKENS
    engine.close()
