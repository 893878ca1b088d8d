"""Pages at 3 bits an element: what they hold, and attention over them."""

import numpy as np
import pytest
import rig
from cache import Cache, Shape, Sight, attention, rope, rope_table, softmax_attention
from guarded import Buffer
from hypothesis import given
from hypothesis import strategies as st
from weights_for import seeds, values

from edgert.kernels.low_pages import elements, low_layout, low_page_bytes, pack, unpack
from edgert.kernels.pages import PAGE, head_layout
from edgert.kernels.records import Token

HEAD_DIMS = [2, 20, 64, 80, 128]


def random_pages(target: str, seed: int, head_dim: int, kind: str, count: int = 3) -> np.ndarray:
    """Whole pages of two heads, as attention's operations fill them."""
    shape = Shape(2, 2, head_dim, "q8", positions=count * PAGE)
    cache = Cache(shape, rope_table(shape))
    qkv = values(np.random.default_rng(seed), kind, (count * PAGE, shape.columns))
    rope(rig.team(target), cache, qkv, 0, 1)
    return cache.memory.bytes[cache.order[1]].view(cache.head).copy()


@rig.examples(20)
@given(seed=seeds, head_dim=st.sampled_from(HEAD_DIMS), kind=st.sampled_from(["ordinary", "zero"]))
def test_elements_are_rounded_to_nearest(target: str, seed: int, head_dim: int, kind: str) -> None:
    pages = random_pages(target, seed, head_dim, kind)
    packed = pack(pages, head_dim)
    assert packed.dtype == low_layout(head_dim) and packed.shape == pages.shape
    assert low_page_bytes(2, head_dim) == packed[0].nbytes
    for got, want, axis in zip(unpack(packed, head_dim), elements(pages), (-1, -1), strict=True):
        assert got.shape == want.shape
        size = np.abs(want).max() if want.size else 0
        if axis == -1 and got.shape[-1] == PAGE:  # keys: a channel's scale is that of its positions
            step = (want.max(-1, keepdims=True) - want.min(-1, keepdims=True)) / 7
            assert (np.abs(got - want) <= step / 2 + size * 2**-9).all()
    values_got, values_want = unpack(packed, head_dim)[1], elements(pages)[1]
    for first in range(0, values_want.shape[-1], 64):
        some, exact = values_got[..., first:first + 64], values_want[..., first:first + 64]
        step = (exact.max(-1, keepdims=True) - exact.min(-1, keepdims=True)) / 7
        assert (np.abs(some - exact) <= step / 2 + np.abs(exact).max() * 2**-9).all()


def test_what_is_packed_again_stays_as_it_is(target: str) -> None:
    pages = random_pages(target, 1, 80, "ordinary")
    once = pack(pages, 80)
    for array in unpack(once, 80):
        assert np.isfinite(array).all()
    assert once.tobytes() == pack(pages, 80).tobytes()


class LowCache(Cache):
    """A cache whose first pages of a layer are low ones."""

    low = 0

    def lower(self, count: int, layer: int) -> None:
        """Make low pages of the first ones."""
        packed = pack(self.memory.bytes[self.order[layer, :count]].view(self.head), self.shape.head_dim)
        self.held = Buffer(count, packed[0].nbytes)
        self.held.bytes[:] = packed.view(np.uint8).reshape(count, -1)
        self.unpacked, self.low = unpack(packed, self.shape.head_dim), count
        self.addresses = self.addresses.copy()
        self.addresses[layer, :count] = self.held.address + self.held.stride * np.arange(count)

    def token(self, position: int, slot: int) -> Token:
        return super().token(position, slot)._replace(low=self.low * PAGE)

    def keys(self, layer: int, kv_head: int) -> np.ndarray:
        plain = super().keys(layer, kv_head)
        if self.low:
            keys = self.unpacked[0][:, kv_head]
            plain[:self.low * PAGE] = keys.transpose(0, 2, 1).reshape(self.low * PAGE, -1)
        return plain

    def values(self, layer: int, kv_head: int) -> np.ndarray:
        plain = super().values(layer, kv_head)
        if self.low:
            plain[:self.low * PAGE] = self.unpacked[1][:, kv_head].reshape(self.low * PAGE, -1)
        return plain


@rig.examples(12)
@given(seed=seeds, head_dim=st.sampled_from(HEAD_DIMS), kv_heads=st.integers(1, 2), group=st.integers(1, 8),
       low=st.integers(1, 6), more=st.integers(1, 90), tokens=st.integers(1, 9),
       sight=st.builds(Sight, st.sampled_from([0, 0, 3, 100, 300]), st.sampled_from([0.0, 3.0]), st.just(())))
def test_attention_over_low_pages(target: str, seed: int, head_dim: int, kv_heads: int, group: int, low: int, more: int,
                                  tokens: int, sight: Sight) -> None:
    length, tokens = low * PAGE + more, min(tokens, more)
    shape = Shape(group * kv_heads, kv_heads, head_dim, "q8", positions=length)
    cache = LowCache(shape, rope_table(shape))
    qkv = rope(rig.team(target), cache, 2 * values(np.random.default_rng(seed), "ordinary", (length, shape.columns)),
               0, 1)
    cache.lower(low, 1)
    new, start = qkv[-tokens:], length - tokens
    got = attention(rig.team(target, 2), cache, new, start, 1, head_dim**-0.5, 2, sight=sight)
    cache.held.check()
    want, allowed = softmax_attention(cache, new, start, 1, head_dim**-0.5, sight=sight)
    assert (np.abs(got - want) <= allowed).all()
    alone = [attention(rig.team(target), cache, new[i:i + 1], start + i, 1, head_dim**-0.5, sight=sight)
             for i in range(tokens)]
    np.testing.assert_array_equal(got, np.concatenate(alone))


@pytest.mark.parametrize("head_dim", [64, 128, 192])
def test_a_low_page_is_small(head_dim: int) -> None:
    assert low_layout(head_dim).itemsize <= 0.42 * head_layout("q8", head_dim).itemsize
