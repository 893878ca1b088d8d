"""New tokens of several sessions in one call: each gets what it gets alone, to the bit, or all stay as they were."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from small_engine import make_engine
from tiny_model import write_bundle

from edgert.bundle import Bundle
from edgert.engine.buffers import LEAST_ROWS
from edgert.engine.engine import Engine, NewTokens
from edgert.engine.session import Session
from edgert.engine.worker import CancelledError
from edgert.errors import ModelError
from edgert.kernels.records import CANCELLED, SPLIT
from edgert.residency.source import AllInMemory

VOCABULARY, CONTEXT = 300, 640
SHAPE = {"num_hidden_layers": 2, "intermediate_size": 700, "vocab_size": VOCABULARY, "num_attention_heads": 6,
         "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "tie_word_embeddings": False}


class Past(NamedTuple):
    """A session: for how many tokens, and how many it has."""

    context: int
    length: int


PASTS = [Past(64, 5), Past(CONTEXT, 2 * SPLIT - 3), Past(304, SPLIT)]
"""Shorter than a split, one that will cross a border between two, one that stands at a border."""


class Part(NamedTuple):
    """New tokens of session `number` in one call; wanted: as in NewTokens."""

    number: int
    count: int
    wanted: Sequence[int] | None = None


STEPS = [
    [Part(0, 1), Part(1, 1), Part(2, 1)],
    [Part(0, 1), Part(1, 7, [6, 0, 3, 3]), Part(2, 1)],
    [Part(2, 9, range(9)), Part(0, 2, []), Part(1, 1)],
    [Part(1, 1), Part(0, 3, [0])],
    [Part(2, 1)],
    [Part(1, 2), Part(2, 17, [16, 1]), Part(0, 1)],
    [Part(2, 1), Part(1, 1), Part(0, 1)],
]
assert max(len(part.wanted or []) for step in STEPS for part in step) > LEAST_ROWS


def token_ids(number: int, first: int, count: int) -> list[int]:
    """Those of a session, always the same."""
    ids = np.random.default_rng(number).integers(0, VOCABULARY, CONTEXT)[first:first + count]
    return [int(i) for i in ids]


class Sessions:
    """The three of PASTS, an engine that goes on with them, and what it computed for each."""

    def __init__(self, engine: Engine, sessions: Sequence[Session]) -> None:
        self.engine, self.sessions = engine, sessions
        self.logits: list[list[np.ndarray]] = [[] for _ in PASTS]
        for session, past in zip(sessions, PASTS, strict=True):
            session.truncate(past.length)

    def new(self, part: Part) -> NewTokens:
        session = self.sessions[part.number]
        return NewTokens(session, token_ids(part.number, session.length, part.count), part.wanted)

    def step(self, parts: Sequence[Part], **options: Any) -> None:
        """Compute new tokens of several sessions in one call."""
        results = self.engine.forward_all([self.new(part) for part in parts], **options)
        assert len(results) == len(parts)
        for part, logits in zip(parts, results, strict=True):
            assert logits.shape == (1 if part.wanted is None else len(part.wanted), VOCABULARY)
            self.logits[part.number].append(logits)

    @property
    def lengths(self) -> list[int]:
        return [session.length for session in self.sessions]

    def bits(self) -> list[np.ndarray]:
        """Of each session's logits, one step after another."""
        return [np.concatenate(logits).view(np.int32) for logits in self.logits]

    def check(self) -> None:
        """Every session's tokens are those that it was given."""
        for number, session in enumerate(self.sessions):
            assert session.tokens == token_ids(number, 0, session.length)


@pytest.fixture(scope="module", params=[("q4", "f16"), ("q8", "f32"), ("f32", "f16")], ids=lambda p: "-".join(p))
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A preset, and the type of the cache."""
    return request.param


@pytest.fixture(scope="module")
def bundle(kind: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    path = tmp_path_factory.mktemp("together") / "m.edge"
    with Bundle(write_bundle(path, kind[0], size=0.2, **SHAPE)) as opened:
        yield opened


@pytest.fixture(scope="module")
def simple(bundle: Bundle, kind: tuple[str, str]) -> Iterator[Engine]:
    """An engine of one thread, with weights in memory."""
    engine = make_engine(bundle, threads=1, chunk=64, cache_type=kind[1], context=CONTEXT)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def pasts(simple: Engine, kind: tuple[str, str]) -> Iterator[list[Session]]:
    """The sessions as they are before the steps: a test truncates those that others have gone on with."""
    made = [Session(simple.config, past.context, kind[1]) for past in PASTS]
    for number, (session, past) in enumerate(zip(made, PASTS, strict=True)):
        simple.forward(session, token_ids(number, 0, past.length), [])
    yield made
    for session in made:
        session.close()


@pytest.fixture(scope="module")
def alone(simple: Engine, pasts: list[Session]) -> list[np.ndarray]:
    """What each session gets alone."""
    sessions = Sessions(simple, pasts)
    for step in STEPS:
        for part in step:
            sessions.step([part])
    bits = sessions.bits()
    assert all(len(np.unique(rows)) > VOCABULARY for rows in bits)
    return bits


@pytest.fixture
def make(bundle: Bundle, kind: tuple[str, str], pasts: list[Session]) -> Iterator[Callable[..., Sessions]]:
    """Makes an engine for the sessions."""
    made: list[Engine] = []

    def sessions(**options: Any) -> Sessions:
        made.append(make_engine(bundle, cache_type=kind[1], context=CONTEXT, **options))
        return Sessions(made[-1], pasts)

    yield sessions
    for engine in made:
        engine.close()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("keep", [1.0, 0.2])
@pytest.mark.parametrize("chunk", [4, 16])
def test_each_gets_what_it_gets_alone(make: Callable[..., Sessions], alone: list[np.ndarray], threads: int,
                                      keep: float, chunk: int) -> None:
    """In several calls, in any order, with one new token or several, that go at once or in turns."""
    sessions = make(threads=threads, keep=keep, chunk=chunk, chunk_bytes=1 << 13)
    assert isinstance(sessions.engine.source, AllInMemory) == (keep == 1)
    for step in STEPS:
        sessions.step(step)
    for number, (bits, expected) in enumerate(zip(sessions.bits(), alone, strict=True)):
        assert np.array_equal(bits, expected), number
    sessions.check()


BAD: list[tuple[str, Callable[[Sessions], list[NewTokens]], str]] = [
    ("twice", lambda s: [s.new(Part(0, 1)), s.new(Part(1, 1)), s.new(Part(0, 2))], "only once in a call"),
    ("token", lambda s: [s.new(Part(0, 1)), NewTokens(s.sessions[1], [1, VOCABULARY, 2]), s.new(Part(2, 1))],
     "token 300 is not in the vocabulary"),
    ("below", lambda s: [s.new(Part(0, 1)), NewTokens(s.sessions[1], [-1])], "token -1 is not in the vocabulary"),
    ("none", lambda s: [s.new(Part(0, 1)), s.new(Part(1, 0))], "no tokens to compute"),
    ("full", lambda s: [s.new(Part(0, 1)), s.new(Part(2, 304 - SPLIT + 1))], "the context is full"),
    ("wanted", lambda s: [s.new(Part(0, 1)), s.new(Part(1, 3, [0, 3]))], "logits of token 3 are wanted, 3 are new"),
]


@pytest.mark.parametrize("keep", [1.0, 0.2])
@pytest.mark.parametrize(("batch", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_refused_as_a_whole(make: Callable[..., Sessions], alone: list[np.ndarray], keep: float,
                            batch: Callable[[Sessions], list[NewTokens]], message: str) -> None:
    """Nothing is computed of what comes with it; the next call is as if there had been none."""
    sessions = make(keep=keep, chunk=4)
    sessions.step(STEPS[0])
    before = sessions.lengths
    with pytest.raises(ModelError, match=message):
        sessions.engine.forward_all(batch(sessions))
    assert sessions.lengths == before
    for step in STEPS[1:]:
        sessions.step(step)
    assert all(np.array_equal(*pair) for pair in zip(sessions.bits(), alone, strict=True))
    sessions.check()


class Broken:
    """Takes the place of Team.run: does something else at run number `at`."""

    def __init__(self, engine: Engine, at: int, instead: Callable[[Callable[[], bool]], bool]) -> None:
        self._run, self._left, self._instead = engine._team.run, at, instead

    def __call__(self, program: np.ndarray) -> bool:
        self._left -= 1
        return self._run(program) if self._left != -1 else self._instead(lambda: self._run(program))


def interrupt(_run: Callable[[], bool]) -> bool:
    raise KeyboardInterrupt


@pytest.mark.parametrize("keep", [1.0, 0.2])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(("instead", "error"), [(lambda run: run() and False, ModelError),
                                                (interrupt, KeyboardInterrupt)], ids=["not-finite", "interrupted"])
def test_all_stay_as_they_were(make: Callable[..., Sessions], alone: list[np.ndarray], keep: float, at: int,
                               monkeypatch: pytest.MonkeyPatch, instead: Callable[[Callable[[], bool]], bool],
                               error: type[BaseException]) -> None:
    """At whichever chunk it fails, also where some sessions have been computed to their end."""
    sessions = make(keep=keep, chunk=4)
    for step in STEPS[:2]:
        sessions.step(step)
    before = sessions.lengths
    with monkeypatch.context() as patch:
        patch.setattr(sessions.engine._team, "run", Broken(sessions.engine, at, instead))
        with pytest.raises(error):
            sessions.step(STEPS[2])
    assert sessions.lengths == before
    for step in STEPS[2:]:
        sessions.step(step)
    assert all(np.array_equal(*pair) for pair in zip(sessions.bits(), alone, strict=True))
    sessions.check()


@pytest.mark.parametrize("keep", [1.0, 0.2])
@pytest.mark.parametrize("during", [False, True])
def test_cancelled(make: Callable[..., Sessions], alone: list[np.ndarray], keep: float, during: bool,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two chunks, or while the second is computed: what was computed until then stays, of every session."""
    sessions = make(keep=keep, chunk=4)
    for step in STEPS[:-1]:
        sessions.step(step)
    before, cancel = sessions.lengths, np.zeros(1, np.int64)

    def cancelled(run: Callable[[], bool]) -> bool:
        if during:
            cancel[0] = CANCELLED
            return run()
        result = run()
        cancel[0] = CANCELLED
        return result

    with monkeypatch.context() as patch:
        patch.setattr(sessions.engine._team, "run", Broken(sessions.engine, 1 if during else 0, cancelled))
        with pytest.raises(CancelledError):  # 3 + 6 + 1 tokens; the first chunk is the first session's, and one more
            sessions.engine.forward_all([sessions.new(Part(2, 3, [])), sessions.new(Part(1, 6, [])),
                                         sessions.new(Part(0, 1, []))], cancel=cancel)
    assert sessions.lengths == [before[0], before[1] + 1, before[2] + 3]
    sessions.check()
    for session, length in zip(sessions.sessions, before, strict=True):
        session.truncate(length)
    with pytest.raises(CancelledError):
        sessions.step(STEPS[-1], cancel=cancel)
    assert sessions.lengths == before
    sessions.step(STEPS[-1], cancel=np.zeros(1, np.int64))
    assert all(np.array_equal(*pair) for pair in zip(sessions.bits(), alone, strict=True))
    sessions.check()


def test_one_that_is_closed_does_not_matter(make: Callable[..., Sessions], alone: list[np.ndarray]) -> None:
    """A session may end between two calls that compute the others."""
    sessions = make(chunk=16)
    other = Session(sessions.engine.config, 16, sessions.sessions[0].cache_type)
    for number, step in enumerate(STEPS):
        if number < 2:
            batch = [NewTokens(other, [7]), *(sessions.new(part) for part in step)]
            for part, logits in zip(step, sessions.engine.forward_all(batch)[1:], strict=True):
                sessions.logits[part.number].append(logits)
            continue
        if number == 2:
            other.close()
        sessions.step(step)
    assert all(np.array_equal(*pair) for pair in zip(sessions.bits(), alone, strict=True))
