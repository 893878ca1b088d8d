"""The engine's one call: what it refuses, and that a refusal or another session changes nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from small_engine import make_engine
from tiny_model import CONFIG, write_bundle

from edgert.bundle import Bundle
from edgert.engine.buffers import LEAST_ROWS
from edgert.engine.engine import Engine
from edgert.engine.session import Session
from edgert.errors import BundleError, ModelError
from edgert.models.llama import Config

VOCABULARY = 20
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 19, 0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with Bundle(write_bundle(tmp_path_factory.mktemp("engine") / "m.edge", tie_word_embeddings=False)) as opened:
        yield opened


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[Engine]:
    made = make_engine(bundle, threads=2, chunk=4, cache_type="f32")
    yield made
    made.close()


@pytest.fixture
def session(bundle: Bundle) -> Session:
    return Session(bundle.header.config, len(TOKENS), "f32")


def test_the_context_may_be_filled_but_not_more(engine: Engine, session: Session) -> None:
    expected = engine.forward(session, TOKENS)
    assert session.length == session.context
    with pytest.raises(ModelError, match="the context is full: 16 tokens in use and 1 new ones, room for 16"):
        engine.forward(session, [1])
    session.truncate(15)
    with pytest.raises(ModelError, match="15 tokens in use and 2 new ones"):
        engine.forward(session, [0, 1])
    assert session.length == 15
    assert (engine.forward(session, TOKENS[15:]) == expected).all()


@pytest.mark.parametrize(("tokens", "wanted", "message"), [
    ([], None, "no tokens to compute: give at least one"),
    ([VOCABULARY], None, "token 20 is not in the vocabulary of 20"),
    ([0, -1, 3], None, "token -1 is not in the vocabulary of 20"),
    ([1 << 40], None, "is not in the vocabulary"),
    ([[1, 2]], None, "no tokens to compute"),
    ([1] * 17, None, "the context is full"),
    ([1, 2, 3], [3], "logits of token 3 are wanted, 3 are new"),
    ([1, 2, 3], [-1, 0], "logits of token -1 are wanted, 3 are new"),
])
def test_refused(engine: Engine, session: Session, tokens: list[int], wanted: list[int] | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        engine.forward(session, tokens, wanted)
    assert session.length == 0
    assert np.isfinite(engine.forward(session, TOKENS)).all()


@pytest.mark.parametrize(("cache_type", "config"), [
    ("f16", {}), ("f32", {"num_hidden_layers": 2}), ("f32", {"num_key_value_heads": 2}), ("f32", {"head_dim": 32}),
    ("f32", {"rope_theta": 5.0})])
def test_a_session_that_is_not_the_engines(engine: Engine, session: Session, cache_type: str,
                                           config: dict[str, float]) -> None:
    """The kernels would read and write past its ends, or take its angles for theirs."""
    other = Session(Config.from_hf({**CONFIG, "tie_word_embeddings": False, **config}), len(TOKENS), cache_type)
    with pytest.raises(ModelError, match="the session is of another model, or its cache of type"):
        engine.forward(other, TOKENS)
    assert other.length == 0
    equal = Session(Config.from_hf({**CONFIG, "tie_word_embeddings": False}), len(TOKENS), "f32")
    assert (engine.forward(equal, TOKENS) == engine.forward(session, TOKENS)).all()


def test_wanted(engine: Engine, session: Session) -> None:
    """Any of the new tokens, in any order, more than are computed at once and across chunks; by default the last."""
    every = engine.forward(session, TOKENS, range(16))
    assert every.shape == (16, VOCABULARY) and every.dtype == np.float32 and LEAST_ROWS < 16
    for wanted in ([15], [0], [3, 4], [4, 3], [15, 0, 7], [5, 5, 5], [*range(16), *range(16)], []):
        session.truncate(0)
        logits = engine.forward(session, TOKENS, wanted)
        assert logits.shape == (len(wanted), VOCABULARY)
        assert (logits == every[wanted]).all()
        assert session.length == 16
    session.truncate(0)
    assert (engine.forward(session, np.array(TOKENS)) == every[15:]).all()


def test_sessions_are_independent(bundle: Bundle, engine: Engine) -> None:
    """Of different lengths, in turns, one closed in between."""
    def make(context: int) -> Session:
        return Session(bundle.header.config, context, "f32")

    alone = engine.forward(make(16), TOKENS, range(16))
    first, second, third = make(16), make(64), make(7)
    for at in range(0, 16, 2):
        assert (engine.forward(first, TOKENS[at:at + 2], [0, 1]) == alone[at:at + 2]).all()
        engine.forward(second, [7, 7, 7, 7, 7])
        if at == 4:
            engine.forward(third, TOKENS[:7])
            third.close()


@pytest.mark.parametrize(("make", "message"), [
    (lambda c: Session(c, 65, "f16"), "a context of 65 tokens was asked for; this model takes 1 to 64"),
    (lambda c: Session(c, 0, "f16"), "a context of 0 tokens"),
    (lambda c: Session(c, 16, "q5"), "cache type 'q5' is not known; known: f16, f32, q8, q4"),
    (lambda c: Session(c, 16, "f32").truncate(1), "a session of 0 tokens cannot be truncated to 1"),
    (lambda c: Session(c, 16, "f32").truncate(-1), "cannot be truncated to -1"),
])
def test_sessions_refused(bundle: Bundle, make: Callable[[object], Session], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make(bundle.header.config)


@pytest.mark.parametrize("chunk", [2, 16])
@pytest.mark.parametrize(("preset", "size"), [("f32", 1e15), ("q4", 1e13)])
def test_values_that_are_not_finite(tmp_path: Path, preset: str, size: float, chunk: int) -> None:
    """Weights that are finite, but whose products are not."""
    with Bundle(write_bundle(tmp_path / "m.edge", preset, size=size)) as bundle:
        engine = make_engine(bundle, threads=2, chunk=chunk, cache_type="f32")
        session = Session(bundle.header.config, 16, "f32")
        for _ in range(2):
            with pytest.raises(ModelError, match="the model computed values that are not finite"):
                engine.forward(session, TOKENS)
            assert session.length == 0
        engine.close()


def test_damaged_weights_are_not_loaded(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "m.edge")
    with Bundle(path) as bundle:
        sections = bundle.header.sections
    content = path.read_bytes()
    for name in ("resident", "head", "layers.0.neurons", "group_checksums"):
        at = sections[name].offset + sections[name].length - 1
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x80]) + content[at + 1:])
        with Bundle(path) as bundle, pytest.raises(BundleError, match=f"'{name}' at offset .* its checksum"):
            make_engine(bundle, threads=2, chunk=4, cache_type="f32")


def test_an_embedding_in_memory_or_in_part_or_not(tmp_path: Path) -> None:
    """The answer stays; what is in memory is not read again, and damage to it is found while loading."""
    path = write_bundle(tmp_path / "m.edge", tie_word_embeddings=False, vocab_size=300)
    tokens = [0, 299, 63, 64, 191, 192, 64]
    with Bundle(path) as bundle:
        results = []
        for share in (0.0, 0.6, 1.0):  # none, 3 and 5 of the 5 units
            engine = make_engine(bundle, cache_type="f32", embedding=share)
            results.append(engine.forward(Session(bundle.header.config, 16, "f32"), tokens))
            if share == 1.0:
                with path.open("r+b") as file:
                    file.truncate(bundle.header.sections["embedding"].offset)
                results.append(engine.forward(Session(bundle.header.config, 16, "f32"), tokens))
            engine.close()
        assert all(np.array_equal(results[0], other) for other in results[1:])
        with pytest.raises(BundleError, match="ends at offset"):
            make_engine(bundle, embedding=1.0)


def test_the_file_shrinks_while_it_is_used(tmp_path: Path) -> None:
    """An embedding that is read row by row: an error, not a crash, and the session is as it was."""
    path = write_bundle(tmp_path / "m.edge", tie_word_embeddings=False, vocab_size=40)
    assert CONFIG["vocab_size"] != 40
    with Bundle(path) as bundle:
        engine = make_engine(bundle, threads=1, chunk=4, cache_type="f32")
        session = Session(bundle.header.config, 16, "f32")
        engine.forward(session, [1])
        with path.open("r+b") as file:
            file.truncate(bundle.header.sections["embedding"].offset)
        with pytest.raises(BundleError, match="ends at offset"):
            engine.forward(session, [39])
        assert session.length == 1
        engine.close()
