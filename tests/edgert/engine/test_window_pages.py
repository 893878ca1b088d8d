"""Layers with a window keep what a position to come may look at: the same logits, to the bit, as with all of it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from small_engine import make_engine

from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.engine.engine import Engine, NewTokens
from edgert.engine.page_stream import PageStream
from edgert.engine.pool import Pool
from edgert.engine.prefixes import MORE_POSITIONS, Prefixes
from edgert.engine.retention import POLICIES
from edgert.engine.session import Session
from edgert.engine.session_file import open_session, save_session
from edgert.engine.swap_file import SwapFile
from edgert.engine.window_pages import windowed_block_bytes
from edgert.errors import ModelError, SessionError
from edgert.kernels.pages import CACHE_TYPES, PAGE
from edgert.memory.cache_room import CacheRoom, cache_room, context_in
from edgert.memory.plan import Planner

MODELS = Path(__file__).parents[2] / "golden" / "models"
BLOCKS, CHUNK, VOCABULARY = 14, 40, 263
CONTEXT, WINDOW = BLOCKS * PAGE, 100
NEEDED = 6
"""Blocks that a session needs at most: of 64 tokens that are taken back, 99 before them, and 40 new ones."""
TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, 3 * CONTEXT).tolist()


def converted(folder: Path, name: str, **changes: Any) -> Path:
    """A golden model with longer windows."""
    shutil.copytree(MODELS / name, folder / "model")
    config = folder / "model" / "config.json"
    values = {**json.loads(config.read_text()), "max_position_embeddings": CONTEXT + PAGE, "sliding_window": WINDOW}
    config.write_text(json.dumps({**values, **changes}))
    convert(str(folder / "model"), folder / "m.edge", "f32")
    return folder / "m.edge"


@pytest.fixture(scope="module", params=["some", "all"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """Gemma 3, with windows in two layers of three or in all."""
    changes = {"layer_types": ["sliding_attention"] * 3} if request.param == "all" else {}
    with Bundle(converted(tmp_path_factory.mktemp("windows"), "gemma3", **changes)) as opened:
        yield opened


@pytest.fixture(scope="module", params=CACHE_TYPES)
def engine(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Engine]:
    made = make_engine(bundle, cache_type=request.param, chunk=CHUNK, context=CONTEXT)
    yield made
    made.close()


@pytest.fixture(scope="module")
def one_type(bundle: Bundle) -> Iterator[Engine]:
    made = make_engine(bundle, cache_type="f16", chunk=CHUNK, context=CONTEXT)
    yield made
    made.close()


def pool_of(engine: Engine, windowed: int = NEEDED, positions: int = CONTEXT + MORE_POSITIONS) -> Pool:
    """Where nothing was written, numbers are not finite, but in integers."""
    pool = Pool(engine.config, engine._cache_type, positions, windowed=windowed)
    assert pool.windows is not None
    pool.windows.region.view()[:] = b"\xff" * pool.windows.region.size
    return pool


def same(one: np.ndarray, other: np.ndarray) -> None:
    assert np.array_equal(one.view(np.int32), other.view(np.int32))


@pytest.fixture(scope="module")
def expected(engine: Engine) -> np.ndarray:
    """Logits after every token of a whole context, with all that was computed in the cache."""
    session = Session(engine.config, CONTEXT, engine._cache_type)
    logits = engine.forward(session, TOKENS[:CONTEXT], range(CONTEXT))
    session.close()
    return logits


@pytest.mark.parametrize("step", [7, 97, CONTEXT])
def test_a_long_text(engine: Engine, expected: np.ndarray, step: int) -> None:
    """Whatever comes at once, and with no more places than needed."""
    pool = pool_of(engine)
    session = Session(engine.config, CONTEXT, engine._cache_type, pool)
    for start in range(0, CONTEXT, step):
        some = TOKENS[start:min(start + step, CONTEXT)]
        same(engine.forward(session, some, range(len(some))), expected[start:start + len(some)])
    session.close()
    assert pool.free == pool.count and len(pool.windows._free) == NEEDED and not +pool.windows._needed
    pool.close()


@pytest.mark.parametrize("name", ["mistral", "ministral", "phi3", "qwen2-window", "smollm3-window"])
def test_other_families(tmp_path: Path, name: str) -> None:
    with Bundle(converted(tmp_path, name)) as opened:
        engine = make_engine(opened, cache_type="f16", chunk=CHUNK, context=CONTEXT)
        pool, count = pool_of(engine), engine.config.vocab_size
        split, whole = Session(engine.config, CONTEXT, "f16", pool), Session(engine.config, CONTEXT, "f16")
        tokens = [token % count for token in TOKENS[:CONTEXT]]
        same(*(engine.forward(of, tokens, range(CONTEXT)) for of in (split, whole)))
        for of in (split, whole, pool, engine):
            of.close()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 150), st.integers(1, 150)), max_size=12))
def test_truncated_as_far_as_it_can_go_on(engine: Engine, expected: np.ndarray, turns: list[tuple[int, int]]) -> None:
    pool = pool_of(engine)
    session = Session(engine.config, CONTEXT, engine._cache_type, pool)
    start = 0
    for back, new in [(0, 400), *turns]:
        wanted = max(session.length - back, 0)
        always = wanted >= start and back <= PAGE
        session.truncate(wanted)
        assert session.length == wanted or (session.length < wanted and not always)
        start = session.length
        end = min(start + new, CONTEXT)
        if end > start:
            same(engine.forward(session, TOKENS[start:end]), expected[end - 1:end])
    session.close()
    pool.close()


def test_guesses_and_their_siblings(one_type: Engine) -> None:
    """As many as go at once, again and again, of which some stay, while another session takes all places that it
    can."""
    engine, rng = one_type, np.random.default_rng(3)
    pool = pool_of(engine, 9, 2 * CONTEXT)
    session, whole = Session(engine.config, CONTEXT, "f16", pool), Session(engine.config, CONTEXT, "f16")
    another = Session(engine.config, CONTEXT, "f16", pool)
    for of in (session, whole):
        engine.forward(of, TOKENS[:3 * PAGE])
    for _ in range(25):
        length = session.length
        tokens, other = rng.integers(0, VOCABULARY, 17).tolist(), int(rng.integers(0, VOCABULARY))
        for guess in tokens[1:]:  # as drafts are made, one by one
            engine.forward(session, [guess])
        another.truncate(0)
        engine.forward(another, TOKENS[:9 * PAGE], [])
        session.truncate(length)
        kept = int(rng.integers(1, 17))
        found = [engine.forward_all([NewTokens(of, tokens, range(17), [(kept, other)])])[0] for of in (session, whole)]
        same(*found)
        for of in (session, whole):
            if kept % 2:
                of.adopt(length + 17, length + kept, other)
            else:
                of.truncate(length + kept)
        assert session.tokens == whole.tokens
    for of in (session, whole, another, pool):
        of.close()


class Conversations:
    """A session over a pool, as a model has it."""

    def __init__(self, engine: Engine, windowed: int, positions: int = CONTEXT + MORE_POSITIONS,
                 swap: Path | None = None, *, flash: bool = False) -> None:
        self.engine, self.pool, self.stream = engine, pool_of(engine, windowed, positions), None
        if swap is not None:
            self.pool.have_swap(SwapFile(swap, self.pool.layers, self.pool.page_bytes, 40))
        if flash:
            self.stream = PageStream(self.pool.swap, BLOCKS, 2, 1 << 13, self.pool.whole.tolist())
        self.session = Session(engine.config, CONTEXT, engine._cache_type, self.pool, self.stream)
        self.prefixes = Prefixes(self.pool)
        self.alone = Session(engine.config, CONTEXT, engine._cache_type)

    def ask(self, tokens: list[int]) -> int:
        """Compute these tokens, as few as need be; how many that were."""
        self.session.read(())
        self.prefixes.remember(self.session)
        self.prefixes.recall(self.session, tokens[:-1])
        self.session.settle()
        self.session.read(tokens)
        known = self.session.length
        assert self.session.tokens == tokens[:known]
        self.alone.truncate(0)
        same(self.engine.forward(self.session, tokens[known:]), self.engine.forward(self.alone, tokens))
        self.check()
        return len(tokens) - known

    def check(self) -> None:
        """Every block is free, or held by as many as say so; only what is held has pages of layers with a window."""
        pool, held = self.pool, np.zeros(len(self.pool._holders), int)
        copies = [node.copy for node in self.prefixes._nodes if node.copy is not None]
        for block in [*self.session.blocks.ids, *(node.block for node in self.prefixes._nodes), *copies]:
            held[block] += 1
        assert held.tolist() == pool._holders
        windows = pool.windows
        assert all(held[block] for block in [*windows._places, *pool._windows_out])
        assert sorted([*windows._places.values(), *windows._free]) == list(range(windows.count))
        assert +windows._needed == dict.fromkeys(self.session.blocks.windows.blocks, 1)

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.pool.close()
        self.alone.close()


texts = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5).map(
    lambda words: [w for word in words for w in [word] * 131][:CONTEXT]), min_size=1, max_size=10)


@pytest.mark.parametrize("kind", ["memory", "swap", "flash"])
@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(asked=texts, cuts=st.lists(st.integers(1, CONTEXT), min_size=10, max_size=10))
def test_any_conversations_in_turn(one_type: Engine, tmp_path_factory: pytest.TempPathFactory, kind: str,
                                   asked: list[list[int]], cuts: list[int]) -> None:
    positions = {"memory": CONTEXT + MORE_POSITIONS, "swap": CONTEXT + MORE_POSITIONS, "flash": 4 * PAGE}[kind]
    if kind == "flash" and not len(Pool(one_type.config, "f16", PAGE, windowed=NEEDED).whole):
        return  # no layer's pages go to flash
    talks = Conversations(one_type, NEEDED + 3, positions, None if kind == "memory" else tmp_path_factory.mktemp("s"),
                          flash=kind == "flash")
    for text, cut in zip(asked, cuts, strict=False):
        talks.ask(text[:max(cut % len(text), 1)] if cut % 2 else text)
    talks.close()


def test_what_is_computed_again(one_type: Engine) -> None:
    """A conversation goes on at its end, and its last answer is begun anew at the end of its prompt; what two begin
    with is computed again once, and found from then on."""
    talks, rng = Conversations(one_type, NEEDED + 4), np.random.default_rng(5)
    system = rng.integers(0, VOCABULARY, 4 * PAGE + 9).tolist()
    first, second, third = ([*system, *rng.integers(0, VOCABULARY, 8 * PAGE).tolist()] for _ in range(3))
    assert talks.ask(first) == len(first)
    answer = rng.integers(0, VOCABULARY, PAGE + 20).tolist()
    talks.engine.forward(talks.session, answer)
    assert talks.ask([*first, *answer, 7]) == 1
    assert talks.ask([*first, 8]) <= 2, "another answer to the same"
    assert talks.ask(second) == len(second), "where they part nothing is there any more"
    assert talks.ask(third) == len(third) - len(system)
    talks.close()


def test_what_went_to_flash_comes_back_with_its_windows(one_type: Engine, tmp_path: Path) -> None:
    """Two conversations, and room for one: each goes on where it was."""
    talks, rng = Conversations(one_type, NEEDED, swap=tmp_path), np.random.default_rng(6)
    texts = [rng.integers(0, VOCABULARY, 9 * PAGE + 5).tolist() for _ in range(2)]
    for text in texts:
        talks.ask(text)
    for turn in range(3):
        for text in texts:
            text += rng.integers(0, VOCABULARY, 7).tolist()
            assert talks.ask(text) == 7, turn
    assert talks.pool._windows_out or not len(talks.pool.whole)
    talks.close()


def test_a_draft_sees_the_latest_positions(one_type: Engine, tmp_path: Path) -> None:
    """Where the middle is on flash: in layers with a window exactly what they look at."""
    if not len(pool_of(one_type).whole):
        pytest.skip("no layer's pages go to flash")
    talks = Conversations(one_type, NEEDED, 3 * PAGE, tmp_path, flash=True)
    one_type.forward(talks.session, TOKENS[:9 * PAGE + 20])
    row = talks.session.record_in_memory()[0]
    windowed, slot = talks.pool.windowed, row[6] // PAGE
    blocks = talks.session.blocks
    assert (blocks._resident[windowed, slot - 2:slot + 1] == blocks.pages[windowed, 7:10]).all()
    assert blocks._resident[windowed, slot - 2:slot + 1].all()
    talks.close()


@pytest.mark.parametrize("policy", ["window"])
def test_a_full_cache(bundle: Bundle, policy: str) -> None:
    """Also after keys were turned to the first positions."""
    engine = make_engine(bundle, cache_type="q8", context=CONTEXT, chunk=CHUNK, policy=POLICIES[policy])
    pool = pool_of(engine)
    session, whole = Session(engine.config, CONTEXT, "q8", pool), Session(engine.config, CONTEXT, "q8")
    for start in range(0, len(TOKENS), 130):
        same(*(engine.forward(of, TOKENS[start:start + 130]) for of in (session, whole)))
    assert session.shortest and session.ahead < 3 * PAGE
    for of in (session, whole, pool, engine):
        of.close()


@pytest.mark.parametrize("length", [30, 5 * PAGE, 9 * PAGE + 11])
@pytest.mark.parametrize(("saved", "opened"), [("split", "split"), ("whole", "split"), ("split", "whole")])
def test_a_session_file(one_type: Engine, bundle: Bundle, tmp_path: Path, length: int, saved: str, opened: str) -> None:
    path, pool = tmp_path / "a.session", pool_of(one_type)
    session = Session(one_type.config, CONTEXT, "f16", pool if saved == "split" else None)
    one_type.forward(session, TOKENS[:length])
    save_session(path, session, bundle.digest, "stop", {})
    more = [one_type.forward(session, TOKENS[length:length + 50])]
    session.close()
    again = Session(one_type.config, CONTEXT, "f16", pool if opened == "split" else None)
    file = open_session(path)
    if (saved, opened) == ("split", "whole") and length > WINDOW + PAGE:
        assert path.stat().st_size < 2 * length // PAGE * pool.page_bytes + 6 * PAGE * 200
        with pytest.raises(SessionError, match="the latest positions alone; open it with --context 896"):
            file.check(bundle.digest, again)
    else:
        file.check(bundle.digest, again)
        file.read_into(again)
        more.append(one_type.forward(again, TOKENS[length:length + 50]))
        same(*more)
    again.close()
    pool.close()


def test_a_pool_that_is_too_small_says_so(one_type: Engine) -> None:
    pool = pool_of(one_type, 2)
    session = Session(one_type.config, CONTEXT, "f16", pool)
    with pytest.raises(ModelError, match="all 2 blocks of 64 tokens of layers with a window are in use"):
        one_type.forward(session, TOKENS[:500])
    assert session.length == 0
    session.close()
    pool.close()


def planned(config: Any, context: int, **options: Any) -> CacheRoom:
    def unplanned(_: CacheRoom) -> Planner:
        raise AssertionError("no plan is needed for this")

    policy = POLICIES[options.pop("policy", "stop")]
    return cache_room(config, "f16", context, policy, 64, options.pop("memory", None), None, unplanned, **options)


def test_the_plan_has_room_for_windows_alone(bundle: Bundle) -> None:
    config = bundle.header.config
    room = planned(config, CONTEXT)
    # 100 positions, 64 that are taken back, 64 new ones, and two points of 100 where conversations go on.
    assert room.windowed == (4 + 1) + 1 + 2 * (2 + 1)
    pool = Pool(config, "f16", room.positions, windowed=room.windowed)
    table = 8 * config.num_hidden_layers * BLOCKS
    of_windows = room.windowed * windowed_block_bytes(config, "f16")
    assert room.bytes == pool.count * pool.block_bytes + of_windows + table
    assert pool.block_bytes * config.num_hidden_layers == len(pool.whole) * planned_block(config)
    pool.close()
    assert planned(config, 12 * PAGE, policy="heavy").windowed == planned(config, 8 * PAGE).windowed == 0
    assert planned(config, CONTEXT, parallel=2).windowed == room.windowed + 5
    longest = context_in(config, "f16", room.bytes, POLICIES["stop"], 64, 1)
    assert longest >= CONTEXT
    with pytest.raises(ModelError, match="for the key-value cache hold"):
        planned(config, CONTEXT, memory=of_windows - 1)


def planned_block(config: Any) -> int:
    pool = Pool(config, "f16", PAGE)
    size = pool.block_bytes
    pool.close()
    return size
