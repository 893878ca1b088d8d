"""Norms of queries and keys, what is added to the residual stream, and what is done to logits."""

import numpy as np
import pytest
import rig
from guarded import floats
from hypothesis import given
from hypothesis import strategies as st
from weights_for import seeds, values

from edgert.kernels import records
from edgert.kernels.records import Code

_EPSILON = 1e-5


def definition(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + float(np.float32(_EPSILON))) * weight


@pytest.mark.parametrize("whole", [False, True])
@rig.examples(20)
@given(seed=seeds, head_dim=st.sampled_from([2, 6, 20, 64, 80, 256]), kv_heads=st.integers(1, 3),
       group=st.integers(1, 3), tokens=st.integers(1, 9), threads=st.integers(1, 3))
def test_head_norms(target: str, whole: bool, seed: int, head_dim: int, kv_heads: int, group: int, tokens: int,
                    threads: int) -> None:
    """Of each head, or of all together; values are left alone, and no token minds the others."""
    rng, heads = np.random.default_rng(seed), group * kv_heads
    sizes = np.array([heads, kv_heads]) * head_dim
    qkv = values(rng, "ordinary", (tokens, int(sizes.sum() + sizes[1])))
    weights = [values(rng, "ordinary", (int(size) if whole else head_dim,)) for size in sizes]

    def run(rows: np.ndarray, threads: int) -> np.ndarray:
        buffers = [floats(rows, gap=0), *(floats(weight[None], gap=0) for weight in weights)]
        team = rig.team(target, threads)
        team.set(tokens=len(rows))
        assert rig.run(team, (Code.HEAD_NORMS, records.HeadNorms(
            buffers[0].address, buffers[0].stride, heads, kv_heads, head_dim, buffers[1].address, buffers[2].address,
            int(whole), rig.bits(_EPSILON))))
        for buffer in buffers:
            buffer.check()
        return buffers[0].view(np.float32).copy()

    got, first = run(qkv, threads), 0
    for size, weight in zip(sizes, weights, strict=True):
        part = slice(first, first + size)
        expected = definition(qkv[:, part].reshape(tokens, -1, len(weight)), weight).reshape(tokens, -1)
        np.testing.assert_allclose(got[:, part], expected, rtol=(len(weight) / 16 + 20) * 2**-24, atol=1e-38)
        first += size
    assert np.array_equal(got[:, first:], qkv[:, first:])
    assert np.array_equal(run(qkv[-1:], 1), got[-1:])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_head_norms_report_what_is_not_finite(target: str, bad: float) -> None:
    qkv, weight = floats(np.full((1, 60), bad, np.float32)), np.ones(20, np.float32)
    team = rig.team(target)
    team.set(tokens=1)
    assert not rig.run(team, (Code.HEAD_NORMS, records.HeadNorms(
        qkv.address, qkv.stride, 1, 1, 20, weight.ctypes.data, weight.ctypes.data, 0, rig.bits(_EPSILON))))


@pytest.mark.parametrize("normed", [False, True])
@rig.examples(20)
@given(seed=seeds, columns=st.integers(1, 200), tokens=st.integers(1, 9), threads=st.integers(1, 3),
       scale=st.sampled_from([1.0, 0.22]))
def test_parts_are_added(target: str, normed: bool, seed: int, columns: int, tokens: int, threads: int,
                         scale: float) -> None:
    """What stands behind the columns of y does not count, and what stands behind those of x stays zero."""
    rng = np.random.default_rng(seed)
    x, y = values(rng, "ordinary", (tokens, columns)), values(rng, "ordinary", (tokens, columns))
    weight = values(rng, "ordinary", (columns,))
    to, norm = floats(rig.padded(x, 32)), floats(rig.padded(weight, 32)[None])
    source = floats(np.concatenate([y, np.full((tokens, -columns % 16), np.nan, np.float32)], 1))
    team = rig.team(target, threads)
    team.set(tokens=tokens)
    assert rig.run(team, (Code.ADD, records.Add(
        to.address, to.stride, source.address, source.stride, columns, norm.address if normed else 0,
        rig.bits(_EPSILON), rig.bits(scale))))
    for buffer in (to, norm, source):
        buffer.check()
    added = definition(y, weight) if normed else y.astype(np.float64)
    expected, got = x + float(np.float32(scale)) * added, to.view(np.float32)
    error = (columns / 16 + 20) * 2**-24 * np.abs(added) + 2**-23 * np.abs(expected)
    assert (np.abs(got[:, :columns] - expected) <= error + 1e-38).all()
    assert not got[:, columns:].any()


@pytest.mark.parametrize("cap", [0.0, 30.0])
@pytest.mark.parametrize("threads", [1, 3])
def test_logits_are_scaled_and_capped(target: str, cap: float, threads: int) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, size, (3, 64)) for size in (1e-4, 1, 50, 500)], 1).astype(np.float32)
    logits, team = floats(x), rig.team(target, threads)
    team.set(selected=3, tokens=1000)
    assert rig.run(team, (Code.SCALE, records.Scale(
        logits.address, logits.stride, 16, rig.bits(0.3), rig.bits(cap))))
    logits.check()
    scaled = x.astype(np.float64) * float(np.float32(0.3))
    expected = cap * np.tanh(scaled / cap) if cap else scaled
    np.testing.assert_allclose(logits.view(np.float32), expected, rtol=5e-7)


def test_a_cap_hides_nothing_that_is_not_finite(target: str) -> None:
    x, team = floats(np.array([[np.nan, np.inf, -np.inf, 1.0] * 4], np.float32)), rig.team(target)
    team.set(selected=1)
    rig.run(team, (Code.SCALE, records.Scale(x.address, x.stride, 1, rig.bits(1), rig.bits(30))))
    assert (np.isfinite(x.view(np.float32)) == [[False, False, False, True] * 4]).all()
