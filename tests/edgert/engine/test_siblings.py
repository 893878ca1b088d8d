"""Siblings of new tokens: computed in the call of the chain, each what it is alone in its place, to the bit."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest
from small_engine import make_engine
from tiny_model import write_bundle

from edgert.bundle import Bundle
from edgert.engine.engine import Engine, NewTokens
from edgert.engine.pool import Pool
from edgert.engine.session import Session
from edgert.errors import ModelError
from edgert.kernels.pages import PAGE
from edgert.kernels.records import SPLIT

VOCABULARY, CONTEXT = 300, 640
SHAPE = {"num_hidden_layers": 2, "intermediate_size": 300, "vocab_size": VOCABULARY, "num_attention_heads": 6,
         "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "tie_word_embeddings": False}
LENGTHS = [1, 4, 15, 30, SPLIT - 12, SPLIT - 6, SPLIT - 2, SPLIT - 1, SPLIT, 2 * SPLIT - 5, 2 * SPLIT + 3, 600]
"""Of the sessions before a chain: chains cross borders of tiles and splits, begin there, or end there."""


class Draft(NamedTuple):
    """A chain, and siblings of some of its tokens."""

    chain: list[int]
    siblings: list[tuple[int, int]]


def draft(rng: np.random.Generator, chain: int, siblings: int) -> Draft:
    """Random tokens; no siblings where there is but one token."""
    ids = rng.integers(0, VOCABULARY, chain + siblings).tolist()
    places = sorted(rng.integers(1, chain, siblings).tolist()) if chain > 1 else []
    return Draft(ids[:chain], list(zip(places, ids[chain:], strict=False)))


@pytest.fixture(scope="module", params=[("q4", "f16"), ("f32", "f32")], ids=lambda p: "-".join(p))
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A preset, and the type of the cache."""
    return request.param


@pytest.fixture(scope="module")
def bundle(kind: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    path = tmp_path_factory.mktemp("siblings") / "m.edge"
    with Bundle(write_bundle(path, kind[0], size=0.2, **SHAPE)) as opened:
        yield opened


@pytest.fixture(scope="module")
def simple(bundle: Bundle, kind: tuple[str, str]) -> Iterator[Engine]:
    """An engine of one thread, with weights in memory."""
    engine = make_engine(bundle, threads=1, chunk=64, cache_type=kind[1], context=CONTEXT)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def sessions(simple: Engine, kind: tuple[str, str]) -> Iterator[list[Session]]:
    """Four: they go on from one test to the next, truncated to what each wants. The last is for what is alone."""
    made = [Session(simple.config, CONTEXT, kind[1]) for _ in range(4)]
    yield made
    for session in made:
        session.close()


def prompt(number: int, length: int) -> list[int]:
    return np.random.default_rng(number).integers(0, VOCABULARY, CONTEXT).tolist()[:length]


def begin(simple: Engine, session: Session, tokens: list[int]) -> None:
    """The session has computed these tokens, and no others."""
    session.truncate(session.common_prefix(tokens))
    if tokens[session.length:]:
        simple.forward(session, tokens[session.length:], [])


def one_at_a_time(simple: Engine, session: Session, new: Draft) -> np.ndarray:
    """Logits of each token of a chain, then of its siblings, each as the last token of a session."""
    length, logits = session.length, []
    for token in new.chain:
        logits.append(simple.forward(session, [token]))
    for place, token in new.siblings:
        session.truncate(length)
        for each in [*new.chain[:place], token]:
            last = simple.forward(session, [each])
        logits.append(last)
    return np.concatenate(logits)


def same(got: np.ndarray, expected: np.ndarray) -> bool:
    return np.array_equal(got.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize(("length", "threads", "chunk", "keep"), [
    (length, *((1, 16, 1.0), (2, 20, 1.0), (2, 16, 0.2))[number % 3]) for number, length in enumerate(LENGTHS)])
def test_each_gets_what_it_gets_alone(bundle: Bundle, simple: Engine, sessions: list[Session], kind: tuple[str, str],
                                      length: int, threads: int, chunk: int, keep: float) -> None:
    """Three sessions in one call, in any order; then with a sibling in place of what it is a sibling of."""
    rng, (*several, alone) = np.random.default_rng([length, threads, chunk]), sessions
    engine = make_engine(bundle, threads=threads, chunk=chunk, cache_type=kind[1], context=CONTEXT, keep=keep)
    others = rng.choice(LENGTHS, 2).tolist()
    prompts = [prompt(number, each) for number, each in enumerate([length, *others])]
    drafts = [draft(rng, 12, 4), draft(rng, int(rng.integers(1, 13)), int(rng.integers(1, 5))),
              draft(rng, int(rng.integers(1, 13)), 0)]
    expected = []
    for tokens, new in zip(prompts, drafts, strict=True):
        begin(simple, alone, tokens)
        expected.append(one_at_a_time(simple, alone, new))
    for session, tokens in zip(several, prompts, strict=True):
        begin(simple, session, tokens)
    order = rng.permutation(3).tolist()
    got = engine.forward_all([NewTokens(several[i], drafts[i].chain, range(len(drafts[i].chain)), drafts[i].siblings)
                              for i in order])
    for i, logits in zip(order, got, strict=True):
        assert same(logits, expected[i]), i
        assert several[i].tokens == prompts[i] + drafts[i].chain
    number = int(rng.integers(4))
    place, token = drafts[0].siblings[number]
    several[0].adopt(length + 12 + number, length + place, token)
    accepted = [*prompts[0], *drafts[0].chain[:place], token]
    assert several[0].tokens == accepted
    more = draft(rng, 5, 2)
    begin(simple, alone, accepted)
    assert same(engine.forward_all([NewTokens(several[0], more.chain, range(5), more.siblings)])[0],
                one_at_a_time(simple, alone, more))
    engine.close()


@pytest.mark.parametrize("length", [3, SPLIT - 8])
def test_any_chain(simple: Engine, sessions: list[Session], length: int) -> None:
    """Of 1 to 12 tokens, with whichever logits are wanted, and every sibling adopted."""
    rng, session, alone = np.random.default_rng(length), *sessions[2:]
    tokens = prompt(0, length)
    for chain in range(1, 13):
        new = draft(rng, chain, chain)
        begin(simple, alone, tokens)
        expected = one_at_a_time(simple, alone, new)
        every = range(chain, len(expected))
        choices: list[Sequence[int] | None] = [None, [], rng.integers(0, chain, 5).tolist()]
        for wanted in choices:
            begin(simple, session, tokens)
            logits = simple.forward_all([NewTokens(session, new.chain, wanted, new.siblings)])[0]
            assert same(logits, expected[[*([chain - 1] if wanted is None else wanted), *every]])
            assert session.tokens == tokens + new.chain
        for number, (place, token) in enumerate(new.siblings):
            begin(simple, session, tokens)
            simple.forward_all([NewTokens(session, new.chain, [], new.siblings)])
            session.adopt(length + chain + number, length + place, token)
            begin(simple, alone, [*tokens, *new.chain[:place], token])
            assert session.tokens == alone.tokens
            assert same(simple.forward(session, [7, 8], [0, 1]), simple.forward(alone, [7, 8], [0, 1]))


def test_one_adopted_as_the_first_of_a_block_keeps_the_block(simple: Engine, kind: tuple[str, str]) -> None:
    """Also where another session of the same pool takes what is free. (Its block was given back, and the next one to
    ask for a block got it: with one session that was the same session.)"""
    pool = Pool(simple.config, kind[1], 4 * PAGE)
    session, other, alone = (Session(simple.config, 2 * PAGE, kind[1], pool) for _ in range(3))
    tokens = prompt(0, PAGE - 1)
    simple.forward(session, tokens, [])
    simple.forward_all([NewTokens(session, [5, 6, 7], [], [(1, 9)])])
    session.adopt(PAGE + 2, PAGE, 9)
    simple.forward(other, prompt(3, 5), [])
    found = simple.forward(session, [8])
    other.release_all()
    assert same(found, simple.forward(alone, [*tokens, 5, 9, 8]))
    for each in (session, alone):
        each.close()
    pool.close()


REFUSED = [
    ([1, 2, 3], [(0, 1)], "a sibling of token 0 was given, 3 are new"),
    ([1, 2, 3], [(1, 1), (3, 1)], "a sibling of token 3 was given, 3 are new"),
    ([1, 2, 3], [(2, VOCABULARY)], "token 300 is not in the vocabulary"),
    ([1, 2, 3], [(2, -1)], "token -1 is not in the vocabulary"),
    ([1] * 12, [(1, 1)] * 5, "12 tokens and 5 siblings of them cannot go at once, only 16; give fewer"),
    ([1] * 8, [(1, 1)] * 5, "the context is full: 20 tokens in use and 13 new ones, room for 32"),
]


@pytest.mark.parametrize(("chain", "siblings", "message"), REFUSED)
def test_refused(bundle: Bundle, kind: tuple[str, str], chain: list[int], siblings: list[tuple[int, int]],
                 message: str) -> None:
    """The context may be filled with siblings, but not more."""
    engine = make_engine(bundle, chunk=16, cache_type=kind[1], context=CONTEXT)
    session = Session(engine.config, 32, kind[1])
    engine.forward(session, prompt(0, 20), [])
    with pytest.raises(ModelError, match=message):
        engine.forward_all([NewTokens(session, chain, None, siblings)])
    assert session.tokens == prompt(0, 20)
    engine.forward_all([NewTokens(session, [1] * 8, None, [(1, 2)] * 4)])
    assert session.length == 28
    for slot, position in ((32, 21), (20, 21), (29, 29), (28, -1)):
        with pytest.raises(ModelError):
            session.adopt(slot, position, 2)
    assert session.length == 28
    session.adopt(31, 21, 2)
    assert session.tokens == [*prompt(0, 20), 1, 2]
    session.close()
    engine.close()
