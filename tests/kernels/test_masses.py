"""The attention that tokens pay to each position, against its definition."""

import numpy as np
import pytest
import rig
from cache import CACHE_KINDS, Cache, New, Shape, Sight, rope, rope_table, set_tokens
from guarded import Buffer
from hypothesis import given
from hypothesis import strategies as st
from weights_for import seeds, values

from edgert.kernels import records
from edgert.kernels.pages import PAGE
from edgert.kernels.records import Code

SCALE, POSITIONS = 0.3, 320


def masses(target: str, cache: Cache, qkv: np.ndarray, position: int, threads: int, before: np.ndarray,
           sight: Sight) -> np.ndarray:
    """What becomes of `before`, float32 (kv_heads, positions)."""
    shape, team = cache.shape, rig.team(target, threads)
    fields, rows = set_tokens(team, [New(cache, qkv, position)])
    scratch = Buffer(threads, records.attention_scratch_bytes(shape.head_dim, shape.heads // shape.kv_heads))
    out = Buffer(*before.shape[:1], 4 * before.shape[1])
    out.view(np.float32)[:] = before
    assert rig.run(team, (Code.MASSES, records.Masses(
        cache.code, rows.address, rows.stride, shape.heads, shape.kv_heads, shape.head_dim, 1, rig.bits(SCALE),
        scratch.address, scratch.stride, out.address, out.stride, sight.window, rig.bits(sight.cap))))
    for buffer in (fields, rows, scratch, out, cache.memory):
        buffer.check()
    return out.view(np.float32).copy()


def definition(cache: Cache, qkv: np.ndarray, position: int, sight: Sight) -> np.ndarray:
    shape = cache.shape
    found = np.zeros((shape.kv_heads, POSITIONS))
    queries = qkv[:, :shape.heads * shape.head_dim].reshape(len(qkv), shape.heads, -1).astype(np.float64)
    for token, heads in enumerate(queries):
        for head, query in enumerate(heads):
            kv_head = head * shape.kv_heads // shape.heads
            scores = cache.keys(1, kv_head)[:position + token + 1, :shape.head_dim].astype(np.float64) @ query * SCALE
            if sight.cap:
                scores = sight.cap * np.tanh(scores / sight.cap)
            weights = np.exp(scores - scores.max())
            if sight.window:
                weights[:max(len(scores) - sight.window, 0)] = 0
            found[kv_head, :len(scores)] += weights / weights.sum()
    return found


@pytest.mark.parametrize("kind", CACHE_KINDS)
@rig.examples(8)
@given(seed=seeds, head_dim=st.sampled_from([6, 20, 64]), kv_heads=st.integers(1, 3),
       group=st.sampled_from([1, 3, 6, 7, 12]), length=st.integers(1, 300), tokens=st.integers(1, 5),
       sight=st.builds(Sight, st.sampled_from([0, 1, 17, 100]), st.sampled_from([0.0, 3.0]), st.just(())))
def test_against_the_definition(target: str, kind: str, seed: int, head_dim: int, kv_heads: int, group: int,
                                length: int, tokens: int, sight: Sight) -> None:
    shape, tokens = Shape(group * kv_heads, kv_heads, head_dim, kind, positions=POSITIONS), min(tokens, length)
    cache, rng = Cache(shape, rope_table(shape)), np.random.default_rng(seed)
    qkv = rope(rig.team(target), cache, 2 * values(rng, "ordinary", (length, shape.columns)), 0, 1)[-tokens:]
    before = rng.random((kv_heads, POSITIONS), np.float32)
    got = masses(target, cache, qkv, length - tokens, 1, before, sight)
    assert np.allclose(got, before + definition(cache, qkv, length - tokens, sight), rtol=1e-4, atol=1e-5)
    assert np.array_equal(got[:, -(-length // PAGE) * PAGE:], before[:, -(-length // PAGE) * PAGE:])
    by_token = before
    for at in range(tokens):
        by_token = masses(target, cache, qkv[at:at + 1], length - tokens + at, 3, by_token, sight)
    assert np.array_equal(by_token, got), "one by one, on other threads: the same bits"
