"""A cache that is larger than its part of memory: the same logits, to the bit, whatever is on flash."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engine import make_engine
from tiny_model import write_bundle

from edgert.bundle import Bundle
from edgert.engine.engine import Engine
from edgert.engine.page_stream import PageStream
from edgert.engine.pool import Pool
from edgert.engine.prefixes import Prefixes
from edgert.engine.session import Session
from edgert.engine.swap_file import SwapFile
from edgert.errors import ModelError
from edgert.kernels.pages import CACHE_TYPES, PAGE

BLOCKS, VOCABULARY = 12, 5
CONTEXT = BLOCKS * PAGE
SHAPE = {"num_hidden_layers": 3, "max_position_embeddings": CONTEXT, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with Bundle(write_bundle(tmp_path_factory.mktemp("flash") / "m.edge", "q4", **SHAPE)) as opened:
        yield opened


@pytest.fixture(scope="module", params=[(kind, keep) for kind in CACHE_TYPES for keep in (1.0, 0.4)], ids=str)
def engine(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Engine]:
    cache_type, keep = request.param
    made = make_engine(bundle, cache_type=cache_type, chunk=40, context=CONTEXT, keep=keep, threads=2)
    yield made
    made.close()


class Flashed:
    """A session that has a few of its blocks in memory, and one that has all."""

    def __init__(self, engine: Engine, folder: Path, blocks: int = 4, slots: int = 40) -> None:
        kind = engine._cache_type
        self.pool = Pool(engine.config, kind, blocks * PAGE)
        self.swap = SwapFile(folder, self.pool.layers, self.pool.page_bytes, slots)
        self.pool.have_swap(self.swap)
        self.stream = PageStream(self.swap, BLOCKS, 2, 3 * self.swap.stride)
        self.session = Session(engine.config, CONTEXT, kind, self.pool, self.stream)
        self.prefixes = Prefixes(self.pool)
        self.whole = Session(engine.config, CONTEXT, kind)

    def check(self) -> None:
        """Every block is free, or held by as many as say so."""
        held = np.zeros(len(self.pool._holders), int)
        copies = [node.copy for node in self.prefixes._nodes if node.copy is not None]
        for block in [*self.session.blocks.ids, *(node.block for node in self.prefixes._nodes), *copies]:
            held[block] += 1
        assert held.tolist() == self.pool._holders
        free = [*self.pool._free, *(slot + self.pool.count for slot in self.swap._free)]
        assert sorted(free) == np.flatnonzero(held == 0).tolist()

    def close(self) -> None:
        self.stream.close()
        self.pool.close()
        self.whole.close()


def tokens_of(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()


def test_a_session_on_flash_computes_the_same(engine: Engine, tmp_path: Path) -> None:
    both = Flashed(engine, tmp_path)
    tokens = tokens_of(1, CONTEXT)
    for start in range(0, CONTEXT, 96):
        some = tokens[start:start + 96]
        logits = [engine.forward(session, some, range(len(some))) for session in (both.session, both.whole)]
        np.testing.assert_array_equal(*logits)
    assert sum(map(both.pool.is_out, both.session.blocks.ids)) == BLOCKS - both.pool.count
    assert both.stream.bytes > 0
    both.check()
    for length in (CONTEXT - 70, 5 * PAGE + 3, 2 * PAGE, 17):  # the end is then on flash
        logits = []
        for session in (both.session, both.whole):
            session.truncate(length)
            logits.append(engine.forward(session, [1, 2, 3], range(3)))
        np.testing.assert_array_equal(*logits)
        both.check()
    both.close()


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, CONTEXT - 1), st.integers(0, 3)), max_size=6))
def test_conversations_that_leave_memory_come_back(engine: Engine, tmp_path_factory: pytest.TempPathFactory,
                                                   asked: list[tuple[int, int, int]]) -> None:
    both = Flashed(engine, tmp_path_factory.mktemp("swap"), slots=14)
    for seed, length, tail in asked:
        tokens = [*tokens_of(seed, length), tail]
        both.prefixes.remember(both.session)
        both.prefixes.recall(both.session, tokens[:-1])
        both.session.settle()
        both.check()
        known = both.session.length
        assert both.session.tokens == tokens[:known]
        both.whole.truncate(0)
        np.testing.assert_array_equal(engine.forward(both.session, tokens[known:])[0],
                                      engine.forward(both.whole, tokens)[0])
        both.check()
    both.close()


def test_a_draft_sees_what_is_in_memory(bundle: Bundle, tmp_path: Path) -> None:
    engine = make_engine(bundle, cache_type="f16", chunk=40, context=CONTEXT, keep=0.6, attention=1.0, head=1.0,
                         details=0.0)
    both = Flashed(engine, tmp_path)
    tokens = tokens_of(3, 8 * PAGE + 5)
    engine.forward(both.session, tokens)
    before = both.stream.bytes
    draft = engine.draft(both.session, 2).copy()
    assert both.stream.bytes == before and np.isfinite(draft).all()
    assert both.session.blocks._resident.flags.c_contiguous  # the kernels go through it row by row
    both.session.truncate(len(tokens))
    exact = engine.forward(both.session, [2])[0]
    assert not np.array_equal(draft, exact[:len(draft)])
    engine.forward(both.whole, tokens)
    np.testing.assert_array_equal(exact, engine.forward(both.whole, [2])[0])
    both.close()
    engine.close()


def test_damage_on_flash_is_noticed(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(bundle, cache_type="f16", chunk=40, context=CONTEXT)
    both = Flashed(engine, tmp_path)
    tokens = tokens_of(4, 8 * PAGE)
    engine.forward(both.session, tokens)
    both.swap._checksums[1, 0] += 1
    with pytest.raises(ModelError, match="key-value cache cannot be read back"):
        engine.forward(both.session, [1])
    assert both.session.tokens == tokens
    both.swap._checksums[1, 0] -= 1
    engine.forward(both.whole, tokens)
    np.testing.assert_array_equal(engine.forward(both.session, [1])[0], engine.forward(both.whole, [1])[0])
    both.close()
    engine.close()


def test_what_cannot_be_read_back_is_computed_again(bundle: Bundle, tmp_path: Path) -> None:
    engine = make_engine(bundle, cache_type="f16", chunk=40, context=CONTEXT)
    both = Flashed(engine, tmp_path)
    pool, session = both.pool, Session(engine.config, 3 * PAGE, "f16", both.pool)
    tokens = tokens_of(5, 3 * PAGE)
    first = engine.forward(session, tokens)[0]
    both.prefixes.remember(session)
    engine.forward(session, tokens_of(6, 3 * PAGE))
    assert any(pool.is_out(node.block) for node in both.prefixes._nodes)
    both.swap._checksums[:] += 1
    both.prefixes.remember(session)
    both.prefixes.recall(session, tokens[:-1])
    again = engine.forward(session, tokens[session.length:])[0]
    np.testing.assert_array_equal(first, again)
    session.release_all()
    both.check()
    both.close()
    engine.close()


def test_conversations_that_change_places_are_written_once(bundle: Bundle, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(bundle, cache_type="f16", chunk=40, context=CONTEXT)
    both = Flashed(engine, tmp_path)
    session, put, written = Session(engine.config, 3 * PAGE, "f16", both.pool), both.swap.put, []
    monkeypatch.setattr(both.swap, "put", lambda blocks: written.append(len(blocks)) or put(blocks))
    talks = [tokens_of(seed, 3 * PAGE) for seed in (8, 9)]
    for turn in range(6):
        tokens = talks[turn % 2]
        both.prefixes.remember(session)
        both.prefixes.recall(session, tokens[:-1])
        assert session.length == (0 if turn < 2 else len(tokens) - 1)
        engine.forward(session, tokens[session.length:])
    assert sum(written) == 6
    both.close()
    engine.close()


def test_a_full_disk_is_said(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(bundle, cache_type="f16", chunk=40, context=CONTEXT)
    both = Flashed(engine, tmp_path)
    tokens = tokens_of(7, 4 * PAGE)
    engine.forward(both.session, tokens)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    monkeypatch.setattr("os.pwritev", full)
    with pytest.raises(ModelError, match="needs more room there, and writing failed: no space left"):
        engine.forward(both.session, [1, 2])
    assert both.session.tokens == tokens
    both.check()
    monkeypatch.undo()
    engine.forward(both.whole, tokens)
    np.testing.assert_array_equal(engine.forward(both.session, [1])[0], engine.forward(both.whole, [1])[0])
    both.close()
    engine.close()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be put there"):
        SwapFile(tmp_path / "file" / "folder", 1, 4096, 1).make()
