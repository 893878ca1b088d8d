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

from edgert.kernels.records import ROWS_TOGETHER, SPLIT

HEAD_DIMS = [2, 6, 20, 64, 80, 128]
KINDS = (*FLOATS, "q4")  # which is int8 and int4
kinds = pytest.mark.parametrize("kind", KINDS)
all_kinds = pytest.mark.parametrize("kind", CACHE_KINDS)
head_dims = st.sampled_from(HEAD_DIMS)


def fill(target: str, cache: Cache, qkv: np.ndarray, layer: int = 1) -> np.ndarray:
    """Puts a prompt's keys and values into the cache; its rotated rows."""
    return rope(rig.team(target), cache, qkv, 0, layer)


@all_kinds
@rig.examples(15)
@given(seed=seeds, head_dim=head_dims, kv_heads=st.integers(1, 3), group=st.integers(1, 8),
       length=st.integers(1, 100), tokens=st.integers(1, 9))
def test_against_float64(target: str, kind: str, seed: int, head_dim: int, kv_heads: int, group: int, length: int,
                         tokens: int) -> None:
    shape = Shape(group * kv_heads, kv_heads, head_dim, kind)
    cache = Cache(shape, rope_table(shape))
    qkv = fill(target, cache, 2 * values(np.random.default_rng(seed), "ordinary", (length, shape.columns)))
    tokens = min(tokens, length)
    got = attention(rig.team(target, 2), cache, qkv[-tokens:], length - tokens, 1, head_dim**-0.5, 2)
    want, allowed = softmax_attention(cache, qkv[-tokens:], length - tokens, 1, head_dim**-0.5)
    assert (np.abs(got - want) <= allowed).all()


@kinds
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 48, 100])
def test_lengths_around_tile_borders(target: str, kind: str, length: int) -> None:
    shape = Shape(2, 1, 20, kind)
    cache = Cache(shape, rope_table(shape))
    qkv = fill(target, cache, values(np.random.default_rng(length), "ordinary", (length, shape.columns)))
    got = attention(rig.team(target), cache, qkv, 0, 1, 0.3)
    want, allowed = softmax_attention(cache, qkv, 0, 1, 0.3)
    assert (np.abs(got - want) <= allowed).all()


@kinds
@rig.examples(6)
@given(seed=seeds, head_dim=head_dims, length=st.integers(2, 100), cuts=st.lists(st.integers(1, 99), max_size=3))
def test_at_once_or_in_chunks_on_any_number_of_threads(target: str, kind: str, seed: int, head_dim: int, length: int,
                                                        cuts: list[int]) -> None:
    """A prompt fed at once, in chunks or token by token leaves the same bits in the cache and in the result."""
    shape = Shape(4, 2, head_dim, kind)
    table = rope_table(shape)
    qkv = values(np.random.default_rng(seed), "ordinary", (length, shape.columns))

    def fed(borders: list[int], threads: int) -> tuple[np.ndarray, np.ndarray]:
        cache, team, rows = Cache(shape, table), rig.team(target, threads), []
        for first, last in pairwise(borders):
            turned = rope(team, cache, qkv[first:last], first, 1)
            rows.append(attention(team, cache, turned, first, 1, 0.2, threads))
        return np.concatenate(rows).view(np.int32), cache.memory.bytes

    out, memory = fed([0, length], 1)
    inner = sorted({cut for cut in cuts if cut < length})
    for borders, threads in [([0, length], 2), ([0, *inner, length], 3), (list(range(length + 1)), 4)]:
        other_out, other_memory = fed(borders, threads)
        assert np.array_equal(other_out, out), (borders, threads)
        assert np.array_equal(other_memory, memory), (borders, threads)


LENGTHS = [SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT - 1, 2 * SPLIT, 2 * SPLIT + 1, 700]
LONG = 704
"""Positions of a cache that holds any of them."""


@kinds
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_around_split_borders(target: str, kind: str, length: int) -> None:
    """Whether each split is computed alone and they are combined, or one thread goes through all of them."""
    shape = Shape(4, 2, 20, kind, positions=LONG)
    cache = Cache(shape, rope_table(shape))
    qkv = fill(target, cache, 2 * values(np.random.default_rng(length), "ordinary", (length, shape.columns)))
    want, allowed = softmax_attention(cache, qkv[-5:], length - 5, 1, 0.3)
    for room in (None, 0):
        got = attention(rig.team(target, 2), cache, qkv[-5:], length - 5, 1, 0.3, 2, room=room)
        assert (np.abs(got - want) <= allowed).all()


@pytest.mark.parametrize(("length", "kind", "head_dim"), [
    (length, kind, (6, 20, 64)[(i + j) % 3]) for i, length in enumerate(LENGTHS) for j, kind in enumerate(KINDS)])
def test_the_same_bits_in_parts_or_not(target: str, kind: str, length: int, head_dim: int) -> None:
    """At once, in chunks or token by token, on 1 to 4 threads, with room for all parts, for some, or for none."""
    shape = Shape(6, 2, head_dim, kind, positions=LONG)
    cache = Cache(shape, rope_table(shape))
    turned = fill(target, cache, 2 * values(np.random.default_rng(length), "ordinary", (length, shape.columns)))
    first = length - 19  # these see the border before them, and some of them the one that they cross
    expected = attention(rig.team(target), cache, turned, 0, 1, 0.2, room=0)[first:].view(np.int32)
    chunks = [[first, length], [first, first + 1, first + 9, length], list(range(first, length + 1))]
    for borders in chunks:
        for threads in (1, 4):
            most = max(all_parts([New(cache, turned[a:b], a)]) for a, b in pairwise(borders))
            for room in (most, most - 1, 0):
                parts = [attention(rig.team(target, threads), cache, turned[a:b], a, 1, 0.2, threads, room=room)
                         for a, b in pairwise(borders)]
                assert np.array_equal(np.concatenate(parts).view(np.int32), expected), (borders, threads, room)


@kinds
@pytest.mark.parametrize("group", [*range(1, 9), 12, 16, ROWS_TOGETHER + 1])
def test_query_heads_that_share_a_key_value_head(target: str, kind: str, group: int) -> None:
    """However many: against float64, and the same bits alone, with others, in parts or not."""
    shape = Shape(2 * group, 2, 20, kind, positions=288)
    cache = Cache(shape, rope_table(shape))
    turned = fill(target, cache, 2 * values(np.random.default_rng(group), "ordinary", (275, shape.columns)))
    new, first = turned[-22:], 253
    want, allowed = softmax_attention(cache, new, first, 1, 0.3)
    got = attention(rig.team(target), cache, new, first, 1, 0.3)
    assert (np.abs(got - want) <= allowed).all()
    for threads, room in ((1, 0), (3, None), (3, 0)):
        again = attention(rig.team(target, threads), cache, new, first, 1, 0.3, threads, room=room)
        assert np.array_equal(again.view(np.int32), got.view(np.int32))
    for token in (0, 2, 3, 4, 21):
        for room in (None, 0):
            alone = attention(rig.team(target), cache, new[token:token + 1], first + token, 1, 0.3, room=room)
            assert np.array_equal(alone[0].view(np.int32), got[token].view(np.int32))


def conversations(target: str, kind: str, seed: int, group: int = 3) -> tuple[list[New], list[np.ndarray]]:
    """Three sessions of different lengths and contexts, each with new tokens; and all their tokens so far, rotated."""
    batch, pasts = [], []
    rng = np.random.default_rng(seed)
    for positions, gap, length, new in ((64, 64, 37, 3), (LONG, 8, 520, 9), (304, 132, 256, 1)):
        shape = Shape(2 * group, 2, 20, kind, positions=positions)
        cache = Cache(shape, rope_table(shape), gap=gap)
        past = values(rng, "ordinary", (length, shape.columns))
        pasts.append(past)
        rope(rig.team(target), cache, past, 0, 1)
        batch.append(New(cache, values(rng, "ordinary", (new, shape.columns)), length))
    return batch, pasts


def copied(batch: list[New], pasts: list[np.ndarray], target: str) -> list[New]:
    """The same sessions in caches of their own."""
    made = []
    for new, past in zip(batch, pasts, strict=True):
        other = Cache(new.cache.shape, rope_table(new.cache.shape))
        rope(rig.team(target), other, past, 0, 1)
        made.append(New(other, new.qkv, new.position))
    return made


@kinds
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_sessions_together_are_what_each_is_alone(target: str, kind: str, order: tuple[int, ...]) -> None:
    """Of different lengths, in caches of different sizes, in one call: ROPE, ATTENTION and COMBINE, to the bit."""
    batch, pasts = conversations(target, kind, 1)
    alone_turned, alone_out, alone_memory = [], [], []
    for new in copied(batch, pasts, target):
        turned = rope(rig.team(target), new.cache, new.qkv, new.position, 1)
        alone_turned.append(turned)
        alone_out.append(attention(rig.team(target), new.cache, turned, new.position, 1, 0.2, room=0))
        alone_memory.append(new.cache.memory.bytes)
    some = [batch[i] for i in order]
    for threads in (1, 2, 3, 4):
        team = rig.team(target, threads)
        turned = rope_all(team, some, 1)
        for number, rows in zip(order, turned, strict=True):
            assert np.array_equal(rows.view(np.int32), alone_turned[number].view(np.int32))
            assert np.array_equal(batch[number].cache.memory.bytes, alone_memory[number])
        rotated = [New(new.cache, rows, new.position) for new, rows in zip(some, turned, strict=True)]
        for room in (None, all_parts(rotated) - 1, 0):
            out = attention_all(team, rotated, 1, 0.2, threads, room=room)
            for number, rows in zip(order, out, strict=True):
                assert np.array_equal(rows.view(np.int32), alone_out[number].view(np.int32)), (threads, room, number)


@pytest.mark.parametrize("group", [1, 8])
def test_many_sessions_with_a_token_each(target: str, group: int) -> None:
    """More than go through a cache together: none takes its neighbour's."""
    shape = Shape(2 * group, 2, 20, positions=32)
    table, rng, batch, alone = rope_table(shape), np.random.default_rng(5), [], []
    for number in range(11):
        past = values(rng, "ordinary", (2 * number + 1, shape.columns))
        new = values(rng, "ordinary", (1, shape.columns))
        for out in (batch, alone):
            cache = Cache(shape, table)
            rope(rig.team(target), cache, past, 0, 1)
            out.append(New(cache, new, len(past)))
    turned = rope_all(rig.team(target, 3), batch, 1)
    got = attention_all(rig.team(target, 3), [New(n.cache, rows, n.position) for n, rows in
                                              zip(batch, turned, strict=True)], 1, 0.2, 3)
    for new, rows in zip(alone, got, strict=True):
        one = rope(rig.team(target), new.cache, new.qkv, new.position, 1)
        expected = attention(rig.team(target), new.cache, one, new.position, 1, 0.2)
        assert np.array_equal(rows.view(np.int32), expected.view(np.int32))


@kinds
@pytest.mark.parametrize("room", [None, 0])
@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_later_tokens_and_other_sessions_are_not_seen(target: str, kind: str, part: str, bad: float,
                                                      room: int | None) -> None:
    """What is not finite in a token of a call changes no bit of those before it, nor of another session."""
    batch, _ = conversations(target, kind, 2)
    team = rig.team(target, 2)

    def computed() -> list[np.ndarray]:
        turned = rope_all(team, batch, 1)
        rotated = [New(new.cache, rows, new.position) for new, rows in zip(batch, turned, strict=True)]
        return [rows.view(np.int32) for rows in attention_all(team, rotated, 1, 0.2, 2, room=room)]

    expected = computed()
    first = {"query": 0, "key": 6 * 20, "value": 8 * 20}[part]
    batch[1].qkv[5, first:first + 40] = bad
    with np.errstate(invalid="ignore"):
        got = computed()
    for number in (0, 2):
        assert np.array_equal(got[number], expected[number])
    assert np.array_equal(got[1][:5], expected[1][:5])
    if kind == "f32":  # float16 of the plain target holds no infinity and no NaN
        assert not np.isfinite(got[1][5].view(np.float32)).all()


@kinds
def test_huge_scores_do_not_overflow(target: str, kind: str) -> None:
    """Scores of +-2**26 and ties among them: the softmax is of exact numbers, so it must come out exactly."""
    shape = Shape(2, 1, 64, kind)
    cache = Cache(shape, np.concatenate([np.ones((112, 32)), np.zeros((112, 32))], 1))
    rng = np.random.default_rng(7)
    qkv = values(rng, "ordinary", (70, shape.columns))
    qkv[:, :192] = 2.0**10 * rng.integers(-1, 2, (70, 192))
    turned = fill(target, cache, qkv)
    got = attention(rig.team(target), cache, turned, 0, 1, 1.0)
    want, _ = softmax_attention(cache, turned, 0, 1, 1.0)
    assert np.isfinite(got).all()
    assert np.allclose(got, want, rtol=0, atol=1e-5)


@kinds
def test_a_growing_maximum(target: str, kind: str) -> None:
    """Each tile's scores dwarf those before it, or are dwarfed: the online softmax rescales or ignores."""
    for order in (1, -1):
        shape = Shape(1, 1, 2, kind)
        cache = Cache(shape, np.concatenate([np.ones((112, 1)), np.zeros((112, 1))], 1))
        qkv = np.ones((100, 6), np.float32)
        qkv[:, 2] = np.arange(100)[::order] * 40.0
        qkv[:, 3] = 0
        qkv[:, 4:] = values(np.random.default_rng(0), "ordinary", (100, 2))
        turned = fill(target, cache, qkv)
        got = attention(rig.team(target), cache, turned, 0, 1, 1.0)
        want, _ = softmax_attention(cache, turned, 0, 1, 1.0)
        assert np.allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_come_through(target: str, part: str, bad: float) -> None:
    """So that quantizing the result reports them (test_quantize.py)."""
    shape = Shape(1, 1, 20, "f32")
    cache = Cache(shape, np.concatenate([np.ones((112, 10)), np.zeros((112, 10))], 1))
    qkv = values(np.random.default_rng(1), "ordinary", (40, shape.columns))
    qkv[39 if part == "query" else 5, {"query": 0, "key": 20, "value": 40}[part] + 3] = bad
    got = attention(rig.team(target), cache, fill(target, cache, qkv), 0, 1, 0.2)
    assert not np.isfinite(got[39]).all()
    assert np.isfinite(got[:5]).all(), "tokens before it are not concerned"


@pytest.mark.parametrize("room", [None, 0])
@pytest.mark.parametrize("at", [3, SPLIT - 1, SPLIT, 2 * SPLIT - 1])
@pytest.mark.parametrize("part", ["key", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_come_through_splits(target: str, part: str, bad: float, at: int,
                                                        room: int | None) -> None:
    """In whichever split they are, and also where other splits' scores are far above."""
    for factor in (1, 100):
        shape = Shape(2, 1, 20, "f32", positions=LONG)
        cache = Cache(shape, np.concatenate([np.ones((LONG, 10)), np.zeros((LONG, 10))], 1))
        qkv = values(np.random.default_rng(1), "ordinary", (600, shape.columns))
        qkv[:, :60] *= factor
        qkv[at, {"key": 40, "value": 60}[part] + 3] = bad
        turned = fill(target, cache, qkv)
        for position in (599, 511 if at < 511 else 599, at):
            got = attention(rig.team(target), cache, turned[position:position + 1], position, 1, 0.2, room=room)
            assert not np.isfinite(got).reshape(2, 20)[:, 3 if part == "value" else slice(None)].any()


def test_zeros_keep_their_sign_in_parts_or_not(target: str) -> None:
    """Sums that underflow to -0: to the bit is to the bit."""
    shape = Shape(1, 1, 16, "f32", positions=LONG)
    cache = Cache(shape, np.concatenate([np.ones((LONG, 8)), np.zeros((LONG, 8))], 1))
    qkv = np.zeros((520, shape.columns), np.float32)
    qkv[:, 0] = 1
    qkv[1::2, 16] = -80.0  # every second position weighs next to nothing
    qkv[1::2, 32:] = -1e-20
    turned = fill(target, cache, qkv)
    for first, last in ((250, 260), (257, 258), (500, 520)):
        results = [attention(rig.team(target), cache, turned[first:last], first, 1, 1.0, room=room).view(np.int32)
                   for room in (None, 0)]
        assert np.array_equal(*results)
        for token in range(first, last):
            alone = attention(rig.team(target), cache, turned[token:token + 1], token, 1, 1.0).view(np.int32)
            assert np.array_equal(alone[0], results[0][token - first])
