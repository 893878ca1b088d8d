from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig import examples
from weights_for import FORMAT_NAMES, kinds, matrix, meaning, quantized, seeds

from edgert.kernels.formats import FORMATS, Format, pack, planes, round_bf16, unpack, whole

BYTES = ["q4", "q6", "q8"]
"""Formats whose blocks are laid out alike."""
SPLIT = [name for name, form in FORMATS.items() if form.detail_bytes]
LOWER_BITS = {"q3": 1, "q4": 2, "q6": 4, "q8": 4}
"""Of q, in the detail plane."""

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


@pytest.mark.parametrize("name", BYTES)
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


def blocks_of(form: Format, tiles: np.ndarray) -> np.ndarray:
    """The blocks of a packed matrix: uint8 of shape (tiles, blocks, block_bytes)."""
    return tiles[:, form.header_bytes:].reshape(len(tiles), -1, form.block_bytes)


@pytest.mark.parametrize("name", SPLIT)
@examples()
@given(seed=seeds, shape=st.lists(st.integers(1, 4), max_size=3).map(tuple))
def test_planes_come_together(name: str, seed: int, shape: tuple[int, ...]) -> None:
    """Whatever the bytes, in both directions: a plane has no bit to spare."""
    form, rng = FORMATS[name], np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (*shape, form.block_bytes), np.uint8)
    base, detail = planes(form, blocks)
    assert base.shape == (*shape, form.base_bytes) and detail.shape == (*shape, form.detail_bytes)
    assert base.dtype == detail.dtype == np.uint8
    assert np.array_equal(whole(form, base, detail), blocks)
    base, detail = (rng.integers(0, 256, plane.shape, np.uint8) for plane in (base, detail))
    for plane, again in zip((base, detail), planes(form, whole(form, base, detail)), strict=True):
        assert np.array_equal(plane, again)


@pytest.mark.parametrize("name", [*BYTES, "q3"])
@examples()
@given(seed=seeds, kind=kinds, rows=sizes, columns=sizes)
def test_a_base_alone(name: str, seed: int, kind: str, rows: int, columns: int) -> None:
    """With zeros for the detail a block is one of coarser q, which are the middles in the table but for `middle`."""
    form, bits = FORMATS[name], LOWER_BITS[name]
    numbers = quantized(np.random.default_rng(seed), form, kind, rows, columns)
    upper = (numbers.q.astype(int) + (128 if name == "q8" else 0)) >> bits
    lowest = (upper << bits) - (128 if name == "q8" else 0)
    tiles = pack(form, numbers)
    base, detail = planes(form, blocks_of(form, tiles))
    blocks_of(form, tiles)[:] = whole(form, base, np.zeros_like(detail))
    assert np.array_equal(tiles, pack(form, replace(numbers, q=lowest.astype(numbers.q.dtype))))
    middle = {"q3": 2 * upper + 0.5, "q4": 4 * upper + 1.5, "q6": 16 * upper + 7.5, "q8": 16 * upper + 8 - 128}[name]
    assert np.array_equal(lowest + form.middle, middle)
    positive, negative = meaning(form, replace(numbers, q=lowest))
    assert np.array_equal(unpack(form, tiles), (positive - negative).astype(np.float32))


@pytest.mark.parametrize("name", BYTES)
def test_a_weight_stands_where_the_planes_say(name: str) -> None:
    """One weight at a time: its byte and bits in both planes, as docs/bundle-format.md gives them."""
    form, value = FORMATS[name], {"q4": 0b1101, "q6": 0b101101, "q8": 0b11010110}[name]
    numbers = quantized(np.random.default_rng(1), form, "ordinary", 16, 32)
    for row, column in [(0, 0), (3, 5), (15, 31), (7, 18), (9, 12), (2, 8), (4, 22), (11, 25)]:
        numbers.q[:] = -128 if name == "q8" else 0
        numbers.q[row, column] = value - 128 if name == "q8" else value
        base, detail = (plane[0, 0] for plane in planes(form, blocks_of(form, pack(form, numbers))))
        n, b = column // 4, 4 * row + column % 4
        quarter, half = 64 * (n // 4) + b, 64 * (n // 2) + b
        twos, nibble = (2, 6, 0, 4)[n % 4], 4 * (n % 2)
        at = {"q4": (quarter, quarter), "q6": (quarter, half), "q8": (half, half)}[name]
        shifts = {"q4": (twos, twos), "q6": (2 * (n % 4), nibble), "q8": (nibble, nibble)}[name]
        codes = base[:{"q4": 128, "q6": 128, "q8": 256}[name]]
        for plane, byte, shift, part in zip((codes, detail), at, shifts, divmod(value, 1 << LOWER_BITS[name]),
                                            strict=True):
            assert plane[byte] == part << shift
            assert np.count_nonzero(plane) == 1
        scales = numbers.s[:, 0] if numbers.m is not None else (numbers.s[:, 0].view(np.uint32) >> 16).astype("<u2")
        minima = [] if numbers.m is None else [numbers.m[:, 0]]
        assert base[len(codes):].tobytes() == b"".join(part.tobytes() for part in (scales, *minima))


@examples()
@given(seed=seeds, kind=kinds, rows=sizes, columns=sizes)
def test_a_base_of_pairs_alone(seed: int, kind: str, rows: int, columns: int) -> None:
    """With zeros for the detail, codes are rounded down to multiples of 4; positions are in the base."""
    form = FORMATS["q4n"]
    numbers = quantized(np.random.default_rng(seed), form, kind, rows, columns)
    tiles = pack(form, numbers)
    base, detail = planes(form, blocks_of(form, tiles))
    blocks_of(form, tiles)[:] = whole(form, base, np.zeros_like(detail))
    expected, _ = meaning(form, replace(numbers, q=numbers.q // 4 * 4))
    assert np.array_equal(unpack(form, tiles), expected.astype(np.float32))


TWOS = (2, 6, 0, 4)
"""From which bit on the two bits of quad n stand, by n mod 4."""


@pytest.mark.parametrize("name", ["q2", "q3", "ternary"])
def test_bits_of_few_stand_where_the_layout_says(name: str) -> None:
    """One weight at a time: the bytes that it changes."""
    form = FORMATS[name]
    numbers = quantized(np.random.default_rng(1), form, "ordinary", 16, 32)
    lowest, highest = {"q2": (0, 3), "q3": (0, 7), "ternary": (-1, 1)}[name]
    numbers.q[:] = lowest
    before = pack(form, numbers)[0, form.header_bytes:]
    assert not before[:form.block_bytes - 32].any()
    for row, column in [(0, 0), (3, 5), (15, 31), (7, 18), (9, 12), (2, 8), (4, 22), (11, 25)]:
        numbers.q[:] = lowest
        numbers.q[row, column] = highest
        block = pack(form, numbers)[0, form.header_bytes:]
        n, b = column // 4, 4 * row + column % 4
        at = (64 if name == "q3" else 0) + 64 * (n // 4) + b
        expected = {at: (2 if name == "ternary" else 3) << TWOS[n % 4]}
        if name == "q3":
            expected[b] = 1 << n // 2 + 4 * (n % 2)
        assert {int(i): int(block[i]) for i in np.flatnonzero(block != before)} == expected


def test_pairs_stand_where_the_layout_says() -> None:
    form = FORMATS["q4n"]
    numbers = quantized(np.random.default_rng(1), form, "ordinary", 16, 32)
    for row, quad, places, codes in [(0, 0, (1, 3), (5, -8)), (15, 7, (0, 2), (-1, 7)), (6, 3, (2, 3), (-3, 2))]:
        numbers.q[:] = 0
        numbers.q[row, [4 * quad + place for place in places]] = codes
        block = pack(form, numbers)[0, form.header_bytes:]
        vector = quad // 2
        for number in range(2):
            byte = 4 * row + 2 * (quad % 2) + number
            assert block[64 * (vector // 2) + byte] >> 4 * (vector % 2) & 15 == codes[number] + 8
            assert block[128 + byte] >> 2 * vector & 3 == places[number]
        assert np.count_nonzero(block[:128] != 0x88) == 2
        base, detail = planes(form, block)
        assert base.tobytes()[64:] == block.tobytes()[128:] and len(detail) == 64


def test_more_than_two_of_four_are_refused() -> None:
    numbers = quantized(np.random.default_rng(1), FORMATS["q4n"], "ordinary", 16, 32)
    numbers.q[3, 4:8] = 1, 0, 2, 3
    with pytest.raises(ValueError, match="more than 2 of 4"):
        pack(FORMATS["q4n"], numbers)


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
