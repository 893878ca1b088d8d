"""Attention to a window of the latest positions, and scores with a cap: as everywhere, the same bits whatever comes
together."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import rig
from cache import (
    CACHE_KINDS,
    FLOATS,
    Cache,
    New,
    Shape,
    Sight,
    all_parts,
    attention,
    attention_all,
    rope,
    rope_all,
    rope_table,
    softmax_attention,
)
from hypothesis import given
from hypothesis import strategies as st
from weights_for import seeds, values

from edgert.kernels.records import SPLIT

KINDS = (*FLOATS, "q4")  # which is int8 and int4
kinds = pytest.mark.parametrize("kind", KINDS)
LONG = 704
SCALE = 0.2


def in_turn(sights: Sequence[Sight], lengths: Sequence[int]) -> list[tuple[Sight, int, str]]:
    """Every sight with every length, each with one kind of cache: every kind comes with every sight and length."""
    return [(sight, length, KINDS[(i + j) % len(KINDS)])
            for i, sight in enumerate(sights) for j, length in enumerate(lengths)]


def filled(target: str, shape: Shape, seed: int, length: int) -> tuple[Cache, np.ndarray]:
    """A cache of so many tokens, and their rotated rows."""
    cache = Cache(shape, rope_table(shape))
    qkv = 2 * values(np.random.default_rng(seed), "ordinary", (length, shape.columns))
    return cache, rope(rig.team(target), cache, qkv, 0, 1)


@pytest.mark.parametrize("kind", CACHE_KINDS)
@rig.examples(20)
@given(seed=seeds, head_dim=st.sampled_from([2, 20, 64, 256]), kv_heads=st.integers(1, 2), group=st.integers(1, 8),
       length=st.integers(1, 600), tokens=st.integers(1, 19), window=st.integers(1, 600),
       cap=st.sampled_from([0.0, 3.0]))
def test_against_float64(target: str, kind: str, seed: int, head_dim: int, kv_heads: int, group: int, length: int,
                         tokens: int, window: int, cap: float) -> None:
    """The window is the token itself and the positions just before it."""
    tokens = min(tokens, length)
    cache, qkv = filled(target, Shape(group * kv_heads, kv_heads, head_dim, kind, positions=LONG), seed, length)
    sight = Sight(window, cap)
    want, allowed = softmax_attention(cache, qkv[-tokens:], length - tokens, 1, SCALE, sight=sight)
    for room in (None, 0):
        got = attention(rig.team(target, 2), cache, qkv[-tokens:], length - tokens, 1, SCALE, 2, room=room, sight=sight)
        assert (np.abs(got - want) <= allowed).all()


@pytest.mark.parametrize(("sight", "length", "kind"), in_turn(
    [Sight(0, 3.0), *(Sight(window) for window in (1, 3, 16, 31, 64, 65, SPLIT - 1, SPLIT, SPLIT + 5, LONG)),
     Sight(100, 3.0), Sight(100, 0.0, (-1.0, 0.5, 2.0, 4.0, 0.0, -9.0))], [90, SPLIT + 40, 2 * SPLIT + 3, 700]),
    ids=str)
def test_the_same_bits_in_parts_or_not(target: str, kind: str, length: int, sight: Sight) -> None:
    """At once, in chunks or token by token, on 1 to 4 threads, with room for all parts or for none."""
    cache, turned = filled(target, Shape(6, 2, 20, kind, positions=LONG), length, length)
    first = length - 19
    expected = attention(rig.team(target), cache, turned, 0, 1, SCALE, room=0, sight=sight)[first:].view(np.int32)
    for borders in ([first, length], [first, first + 1, first + 9, length], list(range(first, length + 1))):
        for threads, more in ((1, 0), (3, 1)):
            most = max(all_parts([New(cache, turned[a:b], a)]) for a, b in pairwise(borders))
            for room in (most - more, 0):
                parts = [attention(rig.team(target, threads), cache, turned[a:b], a, 1, SCALE, threads, room=room,
                                   sight=sight) for a, b in pairwise(borders)]
                assert np.array_equal(np.concatenate(parts).view(np.int32), expected), (borders, threads, room)


@pytest.mark.parametrize(("sight", "length", "kind"), in_turn(
    [Sight(1), Sight(5), Sight(40), Sight(300), Sight(40, 3.0), Sight(0, 3.0)], [0, 20, SPLIT - 9, 2 * SPLIT - 5]),
    ids=str)
def test_siblings(target: str, kind: str, length: int, sight: Sight) -> None:
    """Tokens apart: what each is alone, at its position."""
    shape, chain, siblings = Shape(6, 2, 20, kind, positions=LONG), 12, (*range(12), 3, 3)
    team, rng = rig.team(target, 3), np.random.default_rng(length)
    past, rows = (2 * values(rng, "ordinary", (count, shape.columns)) for count in (length, chain + len(siblings)))

    def cache_of() -> Cache:
        cache = Cache(shape, rope_table(shape))
        if length:
            rope(rig.team(target), cache, past, 0, 1)
        return cache

    alone = cache_of()
    expected = np.empty((len(rows), 6 * 20), np.float32)
    for at in range(chain):
        for number in (*(chain + i for i, sibling in enumerate(siblings) if sibling == at), at):
            turned = rope(team, alone, rows[number:number + 1], length + at, 1)
            expected[number] = attention(team, alone, turned, length + at, 1, SCALE, 3, room=0, sight=sight)[0]
    new = New(cache_of(), rows, length, siblings)
    new = new._replace(qkv=rope_all(team, [new], 1)[0])
    for room in (None, 0):
        got = attention_all(team, [new], 1, SCALE, 3, room=room, sight=sight)[0]
        assert np.array_equal(got.view(np.int32), expected.view(np.int32))


@kinds
@pytest.mark.parametrize("room", [None, 0])
def test_what_is_before_the_window_is_not_looked_at(target: str, kind: str, room: int | None) -> None:
    """Whole splits before it are not computed: their pages may hold anything."""
    shape, window = Shape(2, 1, 20, kind, positions=LONG), 30
    cache, turned = filled(target, shape, 1, 600)
    new = turned[590:]
    sight = Sight(window)
    expected = attention(rig.team(target), cache, new, 590, 1, SCALE, room=room, sight=sight)
    cache.memory.bytes[cache.order[1, :(590 - window) // 64]] = 0xFF  # no numbers
    got = attention(rig.team(target), cache, new, 590, 1, SCALE, room=room, sight=sight)
    assert np.array_equal(got.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_cap_hides_nothing_that_is_not_finite(target: str, bad: float) -> None:
    cache, _ = filled(target, Shape(1, 1, 20, "f32"), 1, 40)
    query = np.full((1, 60), bad, np.float32)
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(attention(rig.team(target), cache, query, 39, 1, SCALE, sight=Sight(0, 3.0))).any()


@kinds
@rig.examples(6)
@given(seed=seeds, length=st.integers(1, 600), tokens=st.integers(1, 9), window=st.sampled_from([0, 5, 300]),
       size=st.sampled_from([1.0, 30.0]))
def test_sinks_against_float64(target: str, kind: str, seed: int, length: int, tokens: int, window: int,
                               size: float) -> None:
    """Scores without a value: of a head that finds nothing they take most, also where they are far above all others."""
    tokens = min(tokens, length)
    cache, qkv = filled(target, Shape(4, 2, 20, kind, positions=LONG), seed, length)
    sinks = tuple((size * np.random.default_rng(seed).standard_normal(4)).tolist())
    sight = Sight(window, 0.0, sinks)
    want, allowed = softmax_attention(cache, qkv[-tokens:], length - tokens, 1, SCALE, sight=sight)
    for room in (None, 0):
        got = attention(rig.team(target, 2), cache, qkv[-tokens:], length - tokens, 1, SCALE, 2, room=room, sight=sight)
        assert (np.abs(got - want) <= allowed + 1e-30).all()
