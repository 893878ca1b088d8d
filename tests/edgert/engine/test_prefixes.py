"""What stays of conversations: computed once, found again, and never another's."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engine import make_engine
from tiny_model import write_bundle

from edgert.bundle import Bundle
from edgert.engine.engine import Engine
from edgert.engine.pool import Pool
from edgert.engine.prefixes import MORE_POSITIONS, Prefixes
from edgert.engine.session import Session
from edgert.errors import ModelError
from edgert.kernels.pages import PAGE

CONTEXT, VOCABULARY = 6 * PAGE, 5
SHAPE = {"num_hidden_layers": 2, "max_position_embeddings": CONTEXT,
         "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Bundle(write_bundle(tmp_path_factory.mktemp("prefixes") / "m.edge", "q4", **SHAPE)) as bundle:
        made = make_engine(bundle, cache_type="f16", chunk=64, context=CONTEXT)
        yield made
        made.close()


class Conversations:
    """A session over a pool, as a model has it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.pool = Pool(engine.config, "f16", CONTEXT + MORE_POSITIONS)
        self.session, self.prefixes = Session(engine.config, CONTEXT, "f16", self.pool), Prefixes(self.pool)

    def ask(self, tokens: list[int]) -> tuple[np.ndarray, int]:
        """The logits after these tokens, and how many had to be computed."""
        self.prefixes.remember(self.session)
        self.prefixes.recall(self.session, tokens[:-1])
        known = self.session.length
        assert self.session.tokens == tokens[:known]
        return self.engine.forward(self.session, tokens[known:])[0], len(tokens) - known

    def check(self) -> None:
        """Every block is free, or held by as many as say so."""
        held = np.zeros(self.pool.count, int)
        for block in self.session.blocks.ids:
            held[block] += 1
        for node in self.prefixes._nodes:
            held[node.block] += 1
        assert held.tolist() == self.pool._holders
        assert sorted(self.pool._free) == np.flatnonzero(held == 0).tolist()

    def close(self) -> None:
        self.pool.close()


def alone(engine: Engine, tokens: list[int]) -> np.ndarray:
    session = Session(engine.config, CONTEXT, "f16")
    logits = engine.forward(session, tokens)[0]
    session.close()
    return logits


# Few different tokens, so that conversations often begin alike.
texts = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3).map(
    lambda words: [w for word in words for w in [word] * 53][:CONTEXT]), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(texts=texts, cuts=st.lists(st.integers(1, CONTEXT), min_size=12, max_size=12))
def test_any_conversations_in_turn(engine: Engine, texts: list[list[int]], cuts: list[int]) -> None:
    conversations = Conversations(engine)
    for text, cut in zip(texts, cuts, strict=False):
        tokens = text[:max(cut % len(text), 1)] if cut % 2 else text
        assert np.array_equal(conversations.ask(tokens)[0].view(np.int32), alone(engine, tokens).view(np.int32))
        conversations.check()
    conversations.close()


def test_only_what_is_new_is_computed(engine: Engine) -> None:
    """Four conversations in turn, with a system prompt in common: each goes on where it was."""
    conversations, rng = Conversations(engine), np.random.default_rng(1)
    system = rng.integers(0, VOCABULARY, 70).tolist()
    texts = [system + [n] * 20 for n in range(4)]
    computed = [conversations.ask(text)[1] for text in texts]
    assert computed == [90, 20, 20, 20]
    for turn in range(3):
        for number in (0, 2, 1, 3):
            texts[number] += rng.integers(0, VOCABULARY, 7).tolist()
            logits, new = conversations.ask(texts[number])
            assert new == 7, (turn, number)
            assert np.array_equal(logits, alone(engine, texts[number]))
    conversations.check()
    edited = [*texts[0][:-7], 1]
    assert conversations.ask(edited)[1] == 1, "an edited last turn"
    assert conversations.ask([*texts[0], 2])[1] == 1, "and the one that it was before"
    conversations.close()


def test_the_oldest_goes_first_and_a_conversation_may_take_all(engine: Engine) -> None:
    conversations = Conversations(engine)
    for first in range(4):
        conversations.ask([first] * (2 * PAGE))
    assert conversations.ask([3] * (2 * PAGE) + [0])[1] == 1, "the last stays"
    assert conversations.ask([0] * (2 * PAGE) + [1])[1] > PAGE, "the first went"
    for tokens in ([4] * CONTEXT, [3, 4] * (CONTEXT // 2), [4] * (CONTEXT - 1) + [0]):
        assert np.array_equal(conversations.ask(tokens)[0], alone(engine, tokens))
        conversations.check()
    conversations.close()


def test_a_session_that_begins_anew_leaves_what_was_shared(engine: Engine) -> None:
    """Its blocks are held with others, who may let go of them then."""
    conversations = Conversations(engine)
    for tokens in ([1, 2] * (CONTEXT // 2), [1, 2] * (CONTEXT // 2 - 1) + [3]):
        conversations.ask(tokens)
        conversations.ask(tokens)
    conversations.session.truncate(0)
    tokens = [4] * CONTEXT
    assert np.array_equal(engine.forward(conversations.session, tokens)[0], alone(engine, tokens))
    conversations.check()
    conversations.close()


def test_a_pool_that_is_full(engine: Engine) -> None:
    pool = Pool(engine.config, "f16", PAGE)
    first, second = (Session(engine.config, PAGE, "f16", pool) for _ in range(2))
    engine.forward(first, [1])
    with pytest.raises(ModelError, match="the key-value cache is full: all 1 blocks of 64 tokens are in use"):
        engine.forward(second, [1])
    first.close()
    engine.forward(second, [1])
    pool.close()
