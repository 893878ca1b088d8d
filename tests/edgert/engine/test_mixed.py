"""The policy `mixed`: what would go is kept at 3 bits an element, whatever comes together, and goes at last."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_engine import make_engine
from tiny_model import write_bundle

from edgert.bundle import Bundle
from edgert.engine.engine import Engine
from edgert.engine.retention import POLICIES
from edgert.engine.rotation import Rotation, turned_low
from edgert.engine.session import Session
from edgert.engine.session_file import open_session, save_session
from edgert.errors import SessionError
from edgert.kernels.low_pages import pack, unpack
from edgert.kernels.pages import PAGE

EXACT, LOW, VOCABULARY = 3, 6, 300
CONTEXT, MOST = (EXACT + LOW) * PAGE, 20 * PAGE
SHAPE = {"num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": VOCABULARY, "num_attention_heads": 6,
         "num_key_value_heads": 2, "max_position_embeddings": MOST, "tie_word_embeddings": False}
TOKENS = np.random.default_rng(5).integers(0, VOCABULARY, MOST + 5 * PAGE + 21).tolist()


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def bundle(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Bundle]:
    shape = SHAPE | ({"model_type": "qwen2"} if request.param == "qwen2" else {})
    with Bundle(write_bundle(tmp_path_factory.mktemp("mixed") / "m.edge", "q4", size=0.3, **shape)) as opened:
        yield opened


def made(bundle: Bundle, **options: float) -> Engine:
    return make_engine(bundle, cache_type="q8", context=CONTEXT, policy=POLICIES["mixed"],
                       **{"chunk": 64, **options})  # type: ignore[arg-type]


def session_of(bundle: Bundle) -> Session:
    return Session(bundle.header.config, CONTEXT, "q8", low=LOW)


def test_nothing_else_decides(bundle: Bundle) -> None:
    """Chunks, threads, streamed weights, and how many tokens come together: the same logits, to the bit; also when the
    oldest low blocks have gone, and after everything was turned to new positions."""
    results = []
    for options in ({"threads": 1}, {"threads": 3, "chunk": 7}, {"keep": 0.3, "chunk": 32}):
        engine, session, logits = made(bundle, **options), session_of(bundle), []
        for start in range(0, len(TOKENS), 100):
            logits.append(engine.forward(session, TOKENS[start:start + 100])[0])
        assert session.length == len(TOKENS) and session.low == LOW
        results.append(np.array(logits).view(np.int32))
        session.close()
        engine.close()
    assert all(np.array_equal(other, results[0]) for other in results[1:])


def test_low_blocks_are_what_was_there_before(bundle: Bundle) -> None:
    engine, session, whole = made(bundle), session_of(bundle), Session(bundle.header.config, MOST, "q8")
    engine.forward(session, TOKENS[:EXACT * PAGE])
    engine.forward(whole, TOKENS[:EXACT * PAGE])
    assert session.low == 0 and session.room == 0
    engine.forward(session, TOKENS[:1])
    assert session.low == 1 and session.room == PAGE - 1
    second = whole.pool.heads(whole.blocks.ids[1])
    assert session.pool.low.heads(session.blocks.ids[0]).tobytes() == pack(second, whole.config.head_dim).tobytes()
    first = session.pool.heads(session.blocks.ids[1])
    np.testing.assert_array_equal(first["keys"], whole.pool.heads(whole.blocks.ids[0])["keys"])
    session.close()
    whole.close()
    engine.close()


def test_close_to_the_exact_answer(bundle: Bundle) -> None:
    """Three bits change the logits a little; forgetting changes them more."""
    exact = make_engine(bundle, cache_type="q8", context=MOST, chunk=64)
    engine, window = made(bundle), make_engine(bundle, cache_type="q8", context=CONTEXT, chunk=64,
                                               policy=POLICIES["window"])
    tokens = TOKENS[:CONTEXT - 5]
    want = exact.forward(Session(bundle.header.config, MOST, "q8"), tokens)
    mixed = engine.forward(session_of(bundle), tokens)
    forgot = window.forward(Session(bundle.header.config, EXACT * PAGE, "q8"), tokens)
    assert 0 < np.abs(mixed - want).max() < 0.5 * np.abs(forgot - want).max()
    for made_engine in (exact, engine, window):
        made_engine.close()


def test_saved_and_reopened_at_every_turn(bundle: Bundle, tmp_path: Path) -> None:
    engine, path = made(bundle), tmp_path / "a.session"
    stayed, session = session_of(bundle), session_of(bundle)
    for start in range(0, len(TOKENS), 190):
        turn = TOKENS[start:start + 190]
        np.testing.assert_array_equal(engine.forward(session, turn), engine.forward(stayed, turn))
        save_session(path, session, bundle.digest, "mixed", {})
        session.close()
        session = session_of(bundle)
        file = open_session(path)
        file.check(bundle.digest, session)
        file.read_into(session)
        assert session.low == stayed.low
    other = Session(bundle.header.config, CONTEXT, "q8", low=LOW + 1)
    with pytest.raises(SessionError, match="a cache of another size; open it with --kv-policy mixed"):
        open_session(path).check(bundle.digest, other)
    engine.close()


def test_truncated(bundle: Bundle) -> None:
    """To what came since the last change it costs nothing; before that everything is forgotten."""
    engine, session, other = made(bundle), session_of(bundle), session_of(bundle)
    tokens = TOKENS[:6 * PAGE + 9]
    engine.forward(session, [*tokens, *TOKENS[:20]])
    session.truncate(len(tokens))
    engine.forward(other, tokens)
    np.testing.assert_array_equal(engine.forward(session, [7])[0], engine.forward(other, [7])[0])
    session.truncate(2 * PAGE)
    assert session.length == 0 and session.low == 0
    engine.forward(session, tokens)
    np.testing.assert_array_equal(engine.forward(session, [7]), engine.forward(session_of(bundle), [*tokens, 7]))
    engine.close()


def test_turned_low_pages_turn_back(bundle: Bundle) -> None:
    """Quantized anew after each turn, they stay near what they were."""
    config = bundle.header.config
    engine, session = made(bundle), session_of(bundle)
    engine.forward(session, TOKENS[:5 * PAGE])
    page = session.pool.low.heads(session.blocks.ids[0])[0, 0]
    rotation = Rotation(config.rope_frequencies(), config.head_dim, neighbours=False)
    there = turned_low(page, np.full(PAGE, 100), rotation, None)
    back = turned_low(there, np.full(PAGE, -100), rotation, None)
    before, after = unpack(page, config.head_dim), unpack(back, config.head_dim)
    step = (before[0].max() - before[0].min()) / 7
    assert np.abs(after[0] - before[0]).max() < 1.6 * step and not np.array_equal(there["keys"], page["keys"])
    np.testing.assert_allclose(after[1], before[1], atol=1e-2)
    engine.close()
