from itertools import pairwise

import numpy as np
import pytest
import rig
from cache import CACHE_KINDS, Cache, Shape, attention, rope, rope_table, softmax_attention
from hypothesis import given
from hypothesis import strategies as st
from weights_for import seeds, values

HEAD_DIMS = [2, 6, 20, 64, 80, 128]
kinds = pytest.mark.parametrize("kind", CACHE_KINDS)
head_dims = st.sampled_from(HEAD_DIMS)


def fill(target: str, cache: Cache, qkv: np.ndarray, layer: int = 1) -> np.ndarray:
    """Puts a prompt's keys and values into the cache; its rotated rows."""
    return rope(rig.team(target), cache, qkv, 0, layer)


@kinds
@rig.examples(15)
@given(seed=seeds, head_dim=head_dims, kv_heads=st.integers(1, 3), group=st.integers(1, 4),
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
