import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig import examples
from weights_for import FORMAT_NAMES, kinds, matrix, meaning, quantized, seeds

from edgert.kernels.formats import FORMATS, pack, round_bf16, unpack

sizes = st.integers(1, 70)


@pytest.mark.parametrize("name", FORMAT_NAMES)
@examples()
@given(seed=seeds, kind=kinds, rows=sizes, columns=sizes)
def test_unpacking_gives_what_was_packed(name: str, seed: int, kind: str, rows: int, columns: int) -> None:
    weights = matrix(np.random.default_rng(seed), FORMATS[name], kind, rows, columns)
    # Every product is exact in float32, so that one rounding, that of the difference, is all that is allowed.
    assert np.array_equal(unpack(FORMATS[name], weights.packed), weights.exact.astype(np.float32))


@pytest.mark.parametrize("name", FORMAT_NAMES)
@examples()
@given(seed=seeds, rows=sizes, columns=sizes)
def test_sizes_are_those_of_the_packed_matrix(name: str, seed: int, rows: int, columns: int) -> None:
    form = FORMATS[name]
    packed = matrix(np.random.default_rng(seed), form, "ordinary", rows, columns).packed
    assert packed.dtype == np.uint8
    assert packed.shape == (-(-rows // 16), form.tile_bytes(columns))
    assert packed.nbytes == form.matrix_bytes(rows, columns)


@pytest.mark.parametrize("name", ["q4", "q6", "q8"])
def test_a_weight_stands_where_the_layout_says(name: str) -> None:
    """One weight at a time: its byte, and the bits within it, as the table in formats.py gives them."""
    form = FORMATS[name]
    rng = np.random.default_rng(1)
    for row, column in [(0, 0), (3, 5), (15, 31), (7, 18), (16, 40)]:
        numbers = quantized(rng, form, "ordinary", 32, 64)
        numbers.q[:] = 0
        numbers.q[row, column] = {"q4": 13, "q6": 45, "q8": -77}[name]
        tile = pack(form, numbers)[row // 16]
        block = tile[form.header_bytes + column // 32 * form.block_bytes:]
        quad, byte = column % 32 // 4, 4 * (row % 16) + column % 4
        if name == "q8":
            assert block[64 * quad + byte] == 128 - 77
            continue
        nibble = block[64 * (quad // 2) + byte] >> (4 if quad % 2 else 0) & 15
        high = block[256 + 64 * (quad // 4) + byte] >> 2 * (quad % 4) & 3 if name == "q6" else 0
        assert (nibble, high) == ((13, 0) if name == "q4" else (13, 2))


@examples(50)
@given(seed=seeds)
def test_bfloat16_rounding(seed: int) -> None:
    x = np.abs(np.random.default_rng(seed).standard_normal(300) * 10.0 ** np.arange(-150, 150) ** 0).astype(np.float32)
    near, up = round_bf16(x), round_bf16(x, up=True)
    for rounded in (near, up):
        assert not (rounded.view(np.uint32) & 0xFFFF).any()
    step = np.exp2(np.floor(np.log2(x)) - 7)
    assert (np.abs(near - x) <= step / 2).all()
    assert (up >= x).all() and (up - x < step).all()
    assert np.array_equal(round_bf16(near), near) and np.array_equal(round_bf16(near, up=True), near)


def test_meaning_of_a_minimum() -> None:
    """A weight is D*s*q - M*m."""
    numbers = quantized(np.random.default_rng(0), FORMATS["q4"], "ordinary", 16, 32)
    assert numbers.m is not None and numbers.scale is not None and numbers.minimum is not None
    positive, negative = meaning(FORMATS["q4"], numbers)
    assert positive[2, 3] == float(numbers.scale[2]) * int(numbers.s[2, 0]) * int(numbers.q[2, 3])
    assert negative[2, 3] == float(numbers.minimum[2]) * int(numbers.m[2, 0])
