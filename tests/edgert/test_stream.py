"""Weights that come from flash while computing: the same answers, and clear ends when they do not come."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_engine import make_engine
from tiny_model import write_bundle

from edgert.bundle import Bundle
from edgert.engine import Engine
from edgert.errors import BundleError, ModelError
from edgert.flash.file import FlashFile
from edgert.session import Session

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 19, 0, 200, 250, 3, 3]
SHAPE = {"num_hidden_layers": 3, "intermediate_size": 700, "vocab_size": 300}


@pytest.fixture(scope="module", params=["q4", "q8", "f32"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    path = tmp_path_factory.mktemp("stream") / "m.edge"
    tied = request.param == "q8"
    with Bundle(write_bundle(path, request.param, size=0.2, tie_word_embeddings=tied, **SHAPE)) as opened:
        yield opened


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    path = tmp_path_factory.mktemp("stream") / "small.edge"
    with Bundle(write_bundle(path, "q4", size=0.2, tie_word_embeddings=False, **SHAPE)) as opened:
        yield opened


def session_of(bundle: Bundle) -> Session:
    return Session(bundle.header.config, len(TOKENS), "f32")


def logits(engine: Engine, bundle: Bundle, *, one_by_one: bool = False) -> np.ndarray:
    """The bits of the logits after every token."""
    session = session_of(bundle)
    parts = [[t] for t in TOKENS] if one_by_one else [TOKENS]
    every = [engine.forward(session, part, range(len(part))) for part in parts]
    session.close()
    return np.concatenate(every).view(np.int32)


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> np.ndarray:
    engine = make_engine(bundle)
    assert engine.stream is None
    every = logits(engine, bundle)
    engine.close()
    return every


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("chunk", "chunk_bytes", "readers"), [(1, 1, 1), (5, 1 << 13, 3), (20, 1 << 16, 8)])
def test_the_answer_does_not_depend_on_where_weights_come_from(
        bundle: Bundle, expected: np.ndarray, threads: int, keep: float, chunk: int, chunk_bytes: int,
        readers: int) -> None:
    engine = make_engine(bundle, threads=threads, chunk=chunk, keep=keep, chunk_bytes=chunk_bytes, readers=readers)
    assert engine.stream is not None
    for _ in range(2):
        assert np.array_equal(logits(engine, bundle), expected)
    assert np.array_equal(logits(engine, bundle, one_by_one=True), expected)
    assert engine.stream.reading.bytes > 0
    engine.close()


def test_an_interrupted_computation_can_be_done_again(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between two runs, at each in turn: what was read ahead for the rest of them is not used."""
    engine = make_engine(small, keep=0.2, chunk=20)
    expected = logits(engine, small)
    run = engine._team.run
    for stop_at in range(6):
        count = itertools.count()

        def interrupted(program: np.ndarray, stop_at: int = stop_at, count: Iterator[int] = count) -> bool:
            if next(count) == stop_at:
                raise KeyboardInterrupt
            return run(program)

        monkeypatch.setattr(engine._team, "run", interrupted)
        if stop_at < 5:
            with pytest.raises(KeyboardInterrupt):
                logits(engine, small)
        else:
            assert np.array_equal(logits(engine, small), expected), "five runs: 20 rows of logits, 4 at a time"
    monkeypatch.undo()
    assert np.array_equal(logits(engine, small), expected)
    engine.close()


@pytest.mark.parametrize("where", ["expect", "restart"])
def test_interrupted_between_the_lines(small: Bundle, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Ctrl-C after heads were announced that are not computed, and again while that is being mended."""
    engine = make_engine(small, keep=0.2, chunk=20, chunk_bytes=1)
    assert engine.stream is not None
    expected = logits(engine, small)
    expect, start = engine.stream.expect, engine.stream._start

    def interrupted(heads: int) -> None:
        expect(heads)
        raise KeyboardInterrupt

    def not_started() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.stream, "expect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.forward(session_of(small), [1])
    monkeypatch.setattr(engine.stream, "expect", expect)
    if where == "restart":
        monkeypatch.setattr(engine.stream, "_start", not_started)
        with pytest.raises(KeyboardInterrupt):
            engine.forward(session_of(small), [1])
        monkeypatch.setattr(engine.stream, "_start", start)
    engine.forward(session_of(small), [1, 2, 3], [])  # no logits: heads read for nothing would hold all slots
    assert np.array_equal(logits(engine, small), expected)
    engine.close()


class FaultyFile(FlashFile):
    """A file whose read number `fail_at` does not end well."""

    def __init__(self, path: Path, fail_at: int, fault: str) -> None:
        super().__init__(path)
        self.count, self.fail_at, self.fault = itertools.count(), fail_at, fault
        self.reads = 0
        self.hang = threading.Event()

    def read(self, offset: int, buffer: memoryview, needed: int) -> None:
        number = next(self.count)
        self.reads = number + 1
        if number == self.fail_at:
            if self.fault == "error":
                raise BundleError(f"{self.path}: reading at offset {offset} failed: input/output error")
            if self.fault == "unforeseen":
                raise ZeroDivisionError("of no kind that is expected here")
            if self.fault == "hang":
                self.hang.wait()
        super().read(offset, buffer, needed)
        if number == self.fail_at and self.fault == "flip":
            buffer[needed - 1] ^= 1  # the last byte of what is wanted


def reader_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("edgert-")]


@pytest.mark.parametrize("fault", ["error", "flip", "unforeseen"])
def test_every_read_made_to_fail_in_turn(small: Bundle, fault: str) -> None:
    """While loading, reading ahead, reading embedding rows: a sentence, no answer, no thread, a fresh start."""
    before = reader_threads()
    file = FaultyFile(small.path, -1, fault)
    engine = make_engine(small, keep=0.5, chunk_bytes=1 << 13, file=file)
    expected, reads = logits(engine, small), file.reads
    engine.close()
    failed = 0
    for number in range(reads):
        session = session_of(small)
        file = FaultyFile(small.path, number, fault)
        try:
            engine = make_engine(small, keep=0.5, chunk_bytes=1 << 13, file=file)
        except (BundleError, ZeroDivisionError) as error:  # the latter: a bug, while nothing is running yet
            assert "checksum" in str(error) or "reading" in str(error) or "expected here" in str(error)
            assert reader_threads() == before
            failed += 1
            continue
        try:
            got = engine.forward(session, TOKENS, range(len(TOKENS))).view(np.int32)
        except (BundleError, ModelError, ZeroDivisionError) as error:
            failed += 1
            assert "checksum" in str(error) or "reading" in str(error) or "expected here" in str(error)
            assert session.length == 0
            if engine.stream is not None and engine.stream.error is not None:
                with pytest.raises(type(error)):
                    engine.forward(session, [1])
        else:
            assert np.array_equal(got, expected), "the read that failed was for what comes after"
        engine.close()
        assert reader_threads() == before
    assert failed > reads // 2


@pytest.mark.parametrize("change", ["truncated", "overwritten"])
def test_the_file_changes_while_it_is_used(small: Bundle, tmp_path: Path, change: str) -> None:
    path = tmp_path / "m.edge"
    path.write_bytes(small.path.read_bytes())
    with Bundle(path) as bundle:
        engine, session = make_engine(bundle, keep=0.1), session_of(bundle)
        engine.forward(session, [1, 2])
        place = bundle.header.sections["layers.2.neurons"]
        with path.open("r+b") as file:
            if change == "truncated":
                file.truncate(place.offset)
            else:
                file.seek(place.offset)
                file.write(bytes(place.length))
        with pytest.raises(BundleError, match="truncated" if change == "truncated" else "'layers.2.neurons' at offset"):
            for _ in range(3):  # what had been read ahead is still good
                engine.forward(session, [3])
        engine.close()


def test_a_disk_that_does_not_answer(small: Bundle) -> None:
    file = FaultyFile(small.path, 40, "hang")
    engine, session = make_engine(small, keep=0.0, chunk_bytes=1, readers=1, file=file), session_of(small)
    engine._team.set(patience=200)
    with pytest.raises(ModelError, match="the disk does not answer"):
        for _ in range(3):
            engine.forward(session, [1])
    with pytest.raises(ModelError, match="the disk does not answer"):
        engine.forward(session, [1])
    engine.close()  # does not wait for the disk
    file.hang.set()
    for thread in threading.enumerate():
        if "reader" in thread.name:
            thread.join(10)
    assert not any("reader" in name for name in reader_threads())


def test_values_that_are_not_finite_leave_the_stream_in_step(tmp_path: Path) -> None:
    with Bundle(write_bundle(tmp_path / "m.edge", "q4", size=1e13, **SHAPE)) as bundle:
        engine, session = make_engine(bundle, keep=0.0), session_of(bundle)
        for tokens in ([1], [1, 2, 3], [1]):
            with pytest.raises(ModelError, match="not finite"):
                engine.forward(session, tokens)
        engine.close()
