"""A full cache: what a policy lets go of, and that nothing else decides about it."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_engine import make_engine
from tiny_model import write_bundle

from edgert.bundle import Bundle
from edgert.engine.engine import Engine
from edgert.engine.retention import OBSERVED, POLICIES, Heavy, parse_policy
from edgert.engine.session import Session
from edgert.errors import ModelError
from edgert.kernels.pages import CACHE_TYPES, PAGE
from edgert.models import gptoss

MODELS = Path(__file__).parents[2] / "golden" / "models"
CONTEXT, MOST, VOCABULARY = 8 * PAGE, 40 * PAGE, 300
SHAPE = {"num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": VOCABULARY, "num_attention_heads": 6,
         "num_key_value_heads": 2, "max_position_embeddings": MOST, "tie_word_embeddings": False}
FORGETTING = [name for name in POLICIES if name in ("window", "heavy")]
TOKENS = np.random.default_rng(3).integers(0, VOCABULARY, 3 * CONTEXT + 100).tolist()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with Bundle(write_bundle(tmp_path_factory.mktemp("retention") / "m.edge", "q4", size=0.3, **SHAPE)) as opened:
        yield opened


def made(bundle: Bundle, policy: str, cache_type: str = "f16", **options: float) -> Engine:
    return make_engine(bundle, cache_type=cache_type, context=CONTEXT, policy=POLICIES[policy],
                       **{"chunk": 64, **options})  # type: ignore[arg-type]


def session_of(engine: Engine, cache_type: str = "f16") -> Session:
    return Session(engine.config, CONTEXT, cache_type)


def content(session: Session, layer: int, head: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values as float64, (held, head_dim)."""
    pages = np.concatenate([session.pool.heads(block)[layer, head:head + 1] for block in session.blocks.ids])
    keys = pages["keys"].transpose(0, 1, 3, 2).reshape(len(pages) * PAGE, -1)
    values = pages["values"].reshape(len(pages) * PAGE, -1)
    return keys[:session.held].astype(np.float64), values[:session.held].astype(np.float64)


@pytest.mark.parametrize(("policy", "cache_type", "prompt"), [
    *((FORGETTING[number % len(FORGETTING)], cache_type, 0) for number, cache_type in enumerate(CACHE_TYPES)),
    ("window", "q4", 0), ("heavy", "f16", len(TOKENS)), ("heavy", "q4", 2 * CONTEXT + 30)])
def test_nothing_else_decides(bundle: Bundle, policy: str, cache_type: str, prompt: int) -> None:
    """Chunks, threads, streamed weights, and how many tokens come together: the same logits, to the bit."""
    results = []
    for options in ({"threads": 1}, {"threads": 3, "chunk": 7}, {"keep": 0.3, "chunk": 32}):
        engine = made(bundle, policy, cache_type, **options)
        session, logits = session_of(engine, cache_type), []
        session.read(TOKENS[:prompt])
        for start in range(0, len(TOKENS), 100):
            logits.append(engine.forward(session, TOKENS[start:start + 100])[0])
        assert session.length == len(TOKENS) and CONTEXT // 2 < session.held <= CONTEXT
        results.append(np.array(logits).view(np.int32))
        engine.close()
    assert all(np.array_equal(other, results[0]) for other in results[1:])


@pytest.mark.parametrize("policy", FORGETTING)
def test_nothing_happens_before_it_is_full(bundle: Bundle, policy: str) -> None:
    stop, other = made(bundle, "stop"), made(bundle, policy)
    sessions = [session_of(engine) for engine in (stop, other)]
    for start, end in ((0, 300), (300, CONTEXT)):
        logits = [engine.forward(session, TOKENS[start:end]) for engine, session in zip((stop, other), sessions,
                                                                                      strict=True)]
        assert np.array_equal(*logits)
    with pytest.raises(ModelError, match=f"the context is full: {CONTEXT} tokens in use"):
        stop.forward(sessions[0], TOKENS[:1])
    other.forward(sessions[1], TOKENS[:1])
    assert sessions[1].held == CONTEXT - POLICIES[policy].goes_at_once(CONTEXT) + 1


def test_a_window_has_the_first_page_and_the_latest(bundle: Bundle) -> None:
    """The very keys and values, and new tokens stand at their own rotary positions."""
    engine, all_of_it = made(bundle, "window"), make_engine(bundle, cache_type="f16", context=MOST, chunk=64)
    session, whole = session_of(engine), Session(engine.config, MOST, "f16")
    engine.forward(session, TOKENS[:CONTEXT])
    all_of_it.forward(whole, TOKENS[:CONTEXT])
    session.drop_block(1)
    assert session.held == CONTEXT - PAGE and session.length == CONTEXT and session.shortest == CONTEXT
    for layer in range(2):
        for head in range(2):
            for got, want in zip(content(session, layer, head), content(whole, layer, head), strict=True):
                assert np.array_equal(got, np.delete(want, slice(PAGE, 2 * PAGE), 0))
    session.records(3)
    half = engine.config.head_dim // 2
    angles = np.arange(CONTEXT, CONTEXT + 3)[:, None] * engine.config.rope_frequencies()
    assert np.allclose(session._angles[:, :half], np.cos(angles), atol=1e-6)


def test_heavy_keeps_of_each_head_what_attention_returns_to(bundle: Bundle) -> None:
    engine = made(bundle, "heavy", "f32")
    session = session_of(engine, "f32")
    engine.forward(session, TOKENS[:CONTEXT])
    before = [[content(session, layer, head) for head in range(2)] for layer in range(2)]
    masses = engine._observe(session).copy()
    assert session.length == CONTEXT and np.allclose(masses.sum(-1), OBSERVED * 3, rtol=1e-4), "three query heads each"
    kept_before = [content(session, 0, 0)[0].copy()]
    assert np.array_equal(kept_before[0], before[0][0][0]), "observing changes nothing"
    engine.policy.make_room(session, lambda: masses.copy())
    gone = engine.policy.goes_at_once(CONTEXT)
    assert session.held == CONTEXT - gone
    for layer in range(2):
        for head in range(2):
            places = session._places[layer, head]
            assert list(places[:Heavy.sinks]) == list(range(Heavy.sinks))
            assert list(places[-Heavy.latest:]) == list(range(CONTEXT - Heavy.latest, CONTEXT))
            for got, all_of_it in zip(content(session, layer, head), before[layer][head], strict=True):
                assert np.array_equal(got, all_of_it[places])
            most = np.argsort(-masses[layer, head, :CONTEXT - Heavy.latest])[:20]
            assert set(most) <= set(places), "what it returns to most is there"
    assert not np.array_equal(session._places[0, 0], session._places[1, 1]), "each head has its own"


def test_heavy_looks_at_the_end_of_the_prompt_that_is_read(bundle: Bundle) -> None:
    """As if that stood where the last tokens are; these stay as they were."""
    engine = made(bundle, "heavy")
    session, other = session_of(engine), session_of(engine)
    prompt = TOKENS[:CONTEXT + 200]
    session.read(prompt)
    engine.forward(session, prompt[:CONTEXT])
    before = [content(session, layer, head) for layer in range(2) for head in range(2)]
    seen = engine._observe(session).copy()
    after = [content(session, layer, head) for layer in range(2) for head in range(2)]
    assert all(np.array_equal(*pair) for one, same in zip(before, after, strict=True) for pair in zip(one, same,
                                                                                                      strict=True))
    engine.forward(other, [*prompt[:CONTEXT - OBSERVED], *prompt[-OBSERVED:]])
    assert np.array_equal(seen, engine._observe(other))
    engine.forward(session, prompt[CONTEXT:])
    assert not session.coming, "it has been read"
    other.truncate(0)
    engine.forward(other, prompt)
    assert not np.array_equal(session._places, other._places)
    for tokens in (prompt[:10], [*prompt[:9], 0]):
        session.truncate(0)
        session.read(prompt)
        engine.forward(session, tokens)
        assert bool(session.coming) == (tokens == prompt[:10]), "another text is not that prompt"
    engine.close()


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("policy", FORGETTING)
def test_beyond_the_positions_that_the_model_knows(tmp_path: Path, policy: str, cache_type: str) -> None:
    """What is held is turned to the first positions: as if it had stood there."""
    most = CONTEXT + 3 * PAGE
    with Bundle(write_bundle(tmp_path / "m.edge", "f32", size=0.3, **{
            **SHAPE, "num_hidden_layers": 1, "max_position_embeddings": most})) as bundle:
        engine = made(bundle, policy, cache_type)
        session, turned = session_of(engine, cache_type), False
        for start in range(0, len(TOKENS), 50):
            engine.forward(session, TOKENS[start:start + 50])
            assert session.ahead + session.held <= most
            turned = turned or (session.length > session.held and not session.ahead)
        assert turned
        if policy == "window" and cache_type in ("f16", "f32"):
            # One layer: keys are functions of tokens and positions alone.
            session.truncate(session.shortest)
            places = session._rope_places()[0, 0]
            tokens = [*TOKENS[:PAGE], *TOKENS[:session.length][PAGE - session.held:]]
            fresh = session_of(engine, cache_type)
            engine.forward(fresh, tokens)
            shift = places - np.arange(len(places))
            exact = shift == 0
            assert exact[:PAGE].all()
            for head in range(2):
                got, want = (content(s, 0, head)[0] for s in (session, fresh))
                assert np.allclose(got[exact], want[exact], atol=2e-2 if cache_type == "f16" else 1e-3)
        engine.close()


def test_truncated_beyond_what_is_held(bundle: Bundle) -> None:
    """To where nothing has been let go of since, it costs nothing; before that, all is forgotten."""
    for policy in FORGETTING:
        engine = made(bundle, policy)
        session = session_of(engine)
        engine.forward(session, TOKENS[:CONTEXT + 70])
        shortest = session.shortest
        assert CONTEXT <= shortest < CONTEXT + 70
        expected = engine.forward(session, [5, 6])
        session.truncate(session.length - 2)
        assert np.array_equal(engine.forward(session, [5, 6]), expected)
        session.truncate(shortest - 1)
        assert session.length == session.held == 0
        again = engine.forward(session, TOKENS[:CONTEXT + 70])
        session.truncate(0)
        assert np.array_equal(engine.forward(session, TOKENS[:CONTEXT + 70]), again)
        engine.close()


def test_settings_that_make_no_sense(bundle: Bundle) -> None:
    config = bundle.header.config
    with pytest.raises(ModelError, match="the cache policy 'oldest' is not known; known: stop, flash, window, heavy, "):
        parse_policy("oldest", 4096, config)
    with pytest.raises(ModelError, match="heavy needs a context of at least 512 tokens, not 100"):
        parse_policy("heavy", 100, config)


def test_what_goes_by_attention_is_refused_where_it_has_sinks() -> None:
    """What a sink takes of it is not in the masses that are counted."""
    config = gptoss.Config.from_hf(json.loads((MODELS / "gptoss" / "config.json").read_text()))
    for name in POLICIES:
        if name == "heavy":
            with pytest.raises(ModelError, match=r"^the cache policy heavy goes by attention without sinks") as raised:
                parse_policy(name, 4096, config)
            assert "\n" not in str(raised.value)
        else:
            assert parse_policy(name, 4096, config) is POLICIES[name]
