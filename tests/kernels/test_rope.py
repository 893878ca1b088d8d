import numpy as np
import pytest
import rig
from cache import CACHE_KINDS, FLOATS, Cache, Shape, nearest, rope, rope_table
from hypothesis import given
from hypothesis import strategies as st
from weights_for import seeds, values

from edgert.kernels.pages import CACHE_TYPES

HEAD_DIMS = [2, 6, 20, 64, 80, 128]


def definition(shape: Shape, table: np.ndarray, heads: np.ndarray, position: int) -> np.ndarray:
    """(tokens, heads, head_dim) rotated: pair i turns by position * theta**(-2i/d) (Su et al. 2021)."""
    dim = shape.rotated
    half = dim // 2
    rows = table[position:position + len(heads), None].astype(np.float64)
    turn = rows[..., :half] + 1j * rows[..., half:]
    out = heads.astype(np.float64)
    first, second = (slice(0, dim, 2), slice(1, dim, 2)) if shape.interleaved else (slice(half), slice(half, dim))
    turned = (heads[..., first] + 1j * heads[..., second].astype(np.float64)) * turn
    out[..., first], out[..., second] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("kind", CACHE_KINDS)
@pytest.mark.parametrize("interleaved", [False, True])
@rig.examples(15)
@given(seed=seeds, head_dim=st.sampled_from(HEAD_DIMS), kv_heads=st.integers(1, 3), group=st.integers(1, 3),
       position=st.integers(0, 100), tokens=st.integers(1, 9), x_kind=st.sampled_from(["ordinary", "mixed", "zero"]),
       rotated=st.sampled_from([None, 0, 2, 4]), number=st.integers(0, 1))
def test_rotates_and_stores(target: str, kind: str, interleaved: bool, seed: int, head_dim: int, kv_heads: int,
                            group: int, position: int, tokens: int, x_kind: str, rotated: int | None,
                            number: int) -> None:
    """All of a head, its first components, or none of it, by one table of angles or the other."""
    shape = Shape(group * kv_heads, kv_heads, head_dim, kind, interleaved=interleaved,
                  rotary_dim=None if rotated is None else min(rotated, head_dim))
    tables = [rope_table(shape), rope_table(shape, 100.0)]
    table = tables[number]
    cache = Cache(shape, np.concatenate(tables, 1))
    before = values(np.random.default_rng(seed), x_kind, (tokens, shape.columns))
    after = rope(rig.team(target, 2), cache, before, position, 1, table=number)
    split = (shape.heads + kv_heads) * head_dim
    turned = definition(shape, table, before[:, :split].reshape(tokens, -1, head_dim), position)
    assert np.allclose(after[:, :split].reshape(turned.shape), turned, rtol=0,
                       atol=2**-22 * max(np.abs(before).max(), 1e-30))
    assert np.array_equal(after[:, split:], before[:, split:]), "values are not rotated"
    stored = after[:, shape.heads * head_dim:].reshape(tokens, 2, kv_heads, head_dim)
    for part, place in enumerate((cache.keys, cache.values)):
        for head in range(kv_heads):
            rows = place(1, head)
            held, allowed = nearest(stored[:, part, head], CACHE_TYPES[kind][part])
            assert (np.abs(rows[position:position + tokens, :head_dim] - held) <= allowed).all()
            others = np.ones(len(rows), bool)
            others[position:position + tokens] = False
            assert np.isnan(rows[others]).all(), "nothing else is touched"
            if kind in FLOATS:
                assert np.isnan(rows[position:position + tokens, head_dim:]).all()
    assert (cache.memory.bytes[cache.order[0]] == 0xFF).all(), "nor another layer"


def test_float16_rounds_to_nearest_even(target: str) -> None:
    """The cache's float16 is NumPy's, bit for bit: normal, subnormal, halfway cases, and past the largest."""
    halves = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / 2
    x = np.concatenate([halves, between, np.nextafter(between, 0), np.nextafter(between, 1e9),
                        np.array([65519.9, 65520, 1e6, 1e38])]).astype(np.float32)
    x = rig.padded(np.concatenate([x, -x]), 2 * 128).reshape(-1, 128)
    shape = Shape(1, 1, 128, layers=1, positions=-(-len(x) // 16) * 16)
    table = np.zeros((shape.positions, 128), np.float32)
    table[:, :64] = 1
    cache = Cache(shape, table)
    with np.errstate(over="ignore"):
        want = x.astype(np.float16)
    qkv = np.concatenate([np.zeros_like(x), np.zeros_like(x), x], 1)
    rope(rig.team(target), cache, qkv, 0, 0)
    assert np.array_equal(cache.values(0, 0)[:len(x)].view(np.uint16), want.view(np.uint16))
