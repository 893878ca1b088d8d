"""Tokens apart: another token in the place of one of a chain, computed in the same call."""

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
    nearest,
    rope,
    rope_all,
    rope_table,
    softmax_attention,
)
from hypothesis import given
from hypothesis import strategies as st
from weights_for import seeds, values

from edgert.kernels.pages import CACHE_TYPES
from edgert.kernels.records import ROWS_TOGETHER, SPLIT

kinds = pytest.mark.parametrize("kind", [*FLOATS, "q4"])  # which is int8 and int4
all_kinds = pytest.mark.parametrize("kind", CACHE_KINDS)
groups = st.sampled_from([1, 2, 5, 6, 7, 8, 13, ROWS_TOGETHER + 1])
some_siblings = st.lists(st.integers(0, 11), min_size=1, max_size=9)
SCALE = 0.2
POSITIONS = 560


def cache_of(target: str, shape: Shape, past: np.ndarray) -> Cache:
    """A cache with a past's keys and values."""
    cache = Cache(shape, rope_table(shape))
    if len(past):
        rope(rig.team(target), cache, past, 0, 1)
    return cache


def tokens_after(target: str, shape: Shape, seed: int, length: int, chain: int,
                 siblings: tuple[int, ...]) -> tuple[New, np.ndarray]:
    """A chain and siblings after a past of so many tokens, whose rows come too."""
    rng = np.random.default_rng(seed)
    past = 2 * values(rng, "ordinary", (length, shape.columns))
    rows = 2 * values(rng, "ordinary", (chain + len(siblings), shape.columns))
    return New(cache_of(target, shape, past), rows, length, siblings), past


def one_at_a_time(target: str, new: New, past: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotated rows and results of each token in a cache of its own, at its position, after those before it."""
    team, cache = rig.team(target), cache_of(target, new.cache.shape, past)
    chain = len(new.qkv) - len(new.siblings)
    turned, out = np.empty_like(new.qkv), np.empty((len(new.qkv), cache.shape.heads * cache.shape.head_dim), np.float32)
    for at in range(chain):
        for number in (*(chain + i for i, sibling in enumerate(new.siblings) if sibling == at), at):
            position = new.position + at
            turned[number] = rope(team, cache, new.qkv[number:number + 1], position, 1)
            out[number] = attention(team, cache, turned[number:number + 1], position, 1, SCALE, room=0)
    return turned, out


def same(got: np.ndarray, expected: np.ndarray) -> bool:
    return np.array_equal(got.view(np.int32), expected.view(np.int32))


def check_same(target: str, batch: list[New], expected: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Sessions in one call are what each token is alone: on 1 to 3 threads, in parts or not."""
    for threads in (1, 2, 3):
        team = rig.team(target, threads)
        rotated = rope_all(team, batch, 1)
        assert all(same(rows, turned) for rows, (turned, _) in zip(rotated, expected, strict=True))
        new = [each._replace(qkv=rows) for each, rows in zip(batch, rotated, strict=True)]
        for room in (None, all_parts(new) - 1, 0):
            got = attention_all(team, new, 1, SCALE, threads, room=room)
            assert all(same(rows, out) for rows, (_, out) in zip(got, expected, strict=True)), (threads, room)


@all_kinds
@rig.examples(12)
@given(seed=seeds, head_dim=st.sampled_from([2, 20, 64, 128]), kv_heads=st.integers(1, 3), group=groups,
       length=st.integers(0, 60), chain=st.integers(1, 12), siblings=some_siblings)
def test_against_float64(target: str, kind: str, seed: int, head_dim: int, kv_heads: int, group: int, length: int,
                         chain: int, siblings: list[int]) -> None:
    shape = Shape(group * kv_heads, kv_heads, head_dim, kind)
    new, _ = tokens_after(target, shape, seed, length, chain, tuple(at % chain for at in siblings))
    turned = rope_all(rig.team(target), [new], 1)[0]
    got = attention_all(rig.team(target, 2), [new._replace(qkv=turned)], 1, SCALE, 2)[0]
    want, allowed = softmax_attention(new.cache, turned, length, 1, SCALE, new.siblings)
    assert (np.abs(got - want) <= allowed).all()


@kinds
@rig.examples(6)
@given(seed=seeds, head_dim=st.sampled_from([6, 20, 64]), length=st.integers(0, 60), chain=st.integers(1, 12),
       siblings=some_siblings)
def test_where_keys_and_values_are_stored(target: str, kind: str, seed: int, head_dim: int, length: int, chain: int,
                                          siblings: list[int]) -> None:
    """Rotated by their position, behind the chain's, and nothing else is touched."""
    shape = Shape(4, 2, head_dim, kind)
    new, past = tokens_after(target, shape, seed, length, chain, tuple(at % chain for at in siblings))
    expected, _ = one_at_a_time(target, new, past)
    before = [[part(1, head)[:length].copy() for head in range(2)] for part in (new.cache.keys, new.cache.values)]
    assert same(rope_all(rig.team(target, 2), [new], 1)[0], expected)
    stored = expected[:, 4 * head_dim:].reshape(-1, 2, 2, head_dim)
    for part, place in enumerate((new.cache.keys, new.cache.values)):
        for head in range(2):
            rows, end = place(1, head), length + len(new.qkv)
            held, allowed = nearest(stored[:, part, head], CACHE_TYPES[kind][part])
            assert (np.abs(rows[length:end, :head_dim] - held) <= allowed).all()
            assert np.array_equal(rows[:length], before[part][head], equal_nan=True)
            assert np.isnan(rows[end:]).all()
            assert kind not in FLOATS or np.isnan(rows[:, head_dim:]).all()


STARTS = [0, 4, 20, SPLIT - 12, SPLIT - 9, SPLIT - 1, SPLIT, 2 * SPLIT - 5, 2 * SPLIT + 1]
"""Chains from here on cross borders of tiles and splits, begin there, or end there."""


@kinds
@pytest.mark.parametrize("length", STARTS)
@rig.examples(3)
@given(seed=seeds, head_dim=st.sampled_from([6, 20, 64]), group=groups, more=some_siblings)
def test_the_same_bits_as_one_at_a_time(target: str, kind: str, length: int, seed: int, head_dim: int, group: int,
                                        more: list[int]) -> None:
    """A sibling at every place of a chain of 12, at some several."""
    shape = Shape(2 * group, 2, head_dim, kind, positions=POSITIONS)
    new, past = tokens_after(target, shape, seed, length, 12, (*range(12), *more))
    check_same(target, [new], [one_at_a_time(target, new, past)])


@kinds
def test_several_sessions(target: str, kind: str) -> None:
    """With and without siblings, in one call."""
    made = [tokens_after(target, Shape(6, 2, 20, kind, positions=positions), 7, length, chain, siblings)
            for positions, length, chain, siblings in ((64, 13, 4, (3, 2)), (POSITIONS, 508, 7, (1, 4, 4, 6)),
                                                       (304, 254, 1, ()), (288, 250, 12, (6,)))]
    expected = [one_at_a_time(target, *each) for each in made]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        check_same(target, [made[i][0] for i in order], [expected[i] for i in order])


@kinds
@pytest.mark.parametrize("room", [None, 0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["key", "value"])
@pytest.mark.parametrize("length", [37, SPLIT - 3])
def test_who_sees_whom(target: str, kind: str, length: int, part: str, bad: float, room: int | None) -> None:
    """What is not finite at a place of the chain is not seen by a sibling there; in a sibling, by nobody else."""
    chain, siblings = 6, (3, 4, 3)
    shape, team = Shape(6, 2, 20, kind, positions=304), rig.team(target, 2)
    new, _ = tokens_after(target, shape, 3, length, chain, siblings)
    columns = slice(*{"key": (120, 160), "value": (160, 200)}[part])

    def computed(number: int | None = None) -> np.ndarray:
        qkv = new.qkv.copy()
        if number is not None:
            qkv[number, columns] = bad
        with np.errstate(invalid="ignore"):
            turned = rope_all(team, [new._replace(qkv=qkv)], 1)[0]
            return attention_all(team, [new._replace(qkv=turned)], 1, SCALE, 2, room=room)[0]

    expected = computed()
    seen_by: dict[int, set[int]] = {3: {3, 4, 5, chain + 1}, 4: {4, 5}, chain: {chain}, chain + 1: {chain + 1}}
    for number, those in seen_by.items():
        got = computed(number)
        for other in range(len(got)):
            if other not in those:
                assert same(got[other], expected[other]), (number, other)
            elif kind == "f32":  # float16 of the plain target holds no infinity and no NaN
                assert not np.isfinite(got[other]).all(), (number, other)
