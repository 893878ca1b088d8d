"""How far quantized weights are from the weights, on every kind of block that could upset the search for scales."""

from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import Q4_K, dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgert.converters.quantizer import LARGEST, _search_affine, packed, packed_rows, quantize
from edgert.converters.source import Grid
from edgert.kernels.formats import BLOCK, FORMATS, Activation, pack, unpack
from edgert.kernels.neuron_rows import unpack_rows

TOPS = {"q2": 3, "q3": 7, "q4": 15, "q6": 63}
SHAPE = (64, 256)


def make(kind: str) -> np.ndarray:
    random = np.random.default_rng(7)
    normal = random.standard_normal(SHAPE)
    blocks = random.standard_normal((SHAPE[0], SHAPE[1] // BLOCK)).repeat(BLOCK, 1)
    made = {
        "normal": normal, "heavy-tailed": random.standard_t(2, SHAPE), "positive": random.random(SHAPE) + 1,
        "negative": -random.random(SHAPE) - 1, "constant": np.full(SHAPE, 0.37), "constant below 0": np.full(SHAPE, -3),
        "constant blocks": blocks, "nearly constant": 0.37 + 1e-6 * normal, "two values": np.sign(normal),
        "spikes": np.where(random.random(SHAPE) < 0.01, 100, 0.01 * normal), "zeros": np.zeros(SHAPE),
        "blocks of many sizes": normal * 10.0 ** random.uniform(-6, 0, blocks.shape), "huge": 2e29 * normal,
        "tiny": 1e-25 * normal, "denormal": 1e-40 * normal, "one in a block": np.eye(*SHAPE),
    }
    return made[kind].astype(np.float32)


KINDS = ("normal", "heavy-tailed", "positive", "negative", "constant", "constant below 0", "constant blocks",
         "nearly constant", "two values", "spikes", "zeros", "blocks of many sizes", "huge", "tiny", "denormal",
         "one in a block")


def spans(values: np.ndarray) -> np.ndarray:
    """(rows, blocks): from the lowest to the highest weight of each block, or 0 where that is outside."""
    blocks = values.reshape(len(values), -1, BLOCK)
    return blocks.max(2).clip(0) - blocks.min(2).clip(None, 0)


def restored(name: str, values: np.ndarray, grid: Grid | None = None) -> np.ndarray:
    form = FORMATS[name]
    return unpack(form, packed(form, values, grid))[:values.shape[0], :values.shape[1]]


def taken(name: str, values: np.ndarray) -> np.ndarray:
    """Weights like these that a format takes."""
    if name == "ternary":
        return np.sign(values) * np.abs(values).max().astype(np.float32)
    return values * (np.arange(values.shape[1]) % 4 < 2) if name == "q4n" else values


def rms(error: np.ndarray) -> float:
    return float(np.sqrt(np.square(error.astype(np.float64)).mean()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TOPS)
def test_affine_bounds(name: str, kind: str) -> None:
    """No weight is off by more than four steps, though the search may give up a few to fit the others, nor by more than
    rounding its block's scale and minimum to 1/255 of the row's largest makes of it."""
    values, top = make(kind), TOPS[name]
    error = np.abs(restored(name, values) - values).reshape(SHAPE[0], -1, BLOCK).max(2)
    row = spans(values).max(1, keepdims=True)
    # Scales found are at most 1.15 spans / top and minimums 1.15 spans; the unit of a row is at most 1.01/255 of them.
    rounding = 2 * 1.15 * row * 1.01 / 510
    assert (error <= 4 * spans(values) / top + rounding + 1e-30).all()


@pytest.mark.parametrize(("name", "limit"), [("q2", 0.33), ("q3", 0.155), ("q4", 0.073), ("q6", 0.0175),
                                             ("q8", 0.0053)])
def test_error_on_normal_weights(name: str, limit: float) -> None:
    """Root mean square error, in standard deviations. Achieved: 0.312, 0.146, 0.0700, 0.0169, 0.0050."""
    assert rms(restored(name, make("normal")) - make("normal")) < limit


@pytest.mark.parametrize("kind", KINDS)
def test_q8_bounds(kind: str) -> None:
    """Off by at most half a step of a scale that is up to 2 % more or less than largest / 127, and what clipping to
    that costs the largest."""
    values = make(kind)
    largest = np.abs(values).reshape(SHAPE[0], -1, BLOCK).max(2)
    error = np.abs(restored("q8", values) - values).reshape(SHAPE[0], -1, BLOCK).max(2)
    assert (error <= 0.02 * largest + 1e-30).all()


def plain_grid(values: np.ndarray, top: int) -> Grid:
    """Scale and minimum of plain rounding, from the lowest weight to the highest."""
    lowest = values.reshape(len(values), -1, BLOCK).min(2).clip(None, 0)
    return Grid((spans(values) / np.float32(top)).astype(np.float32), -lowest)


@pytest.mark.parametrize("kind", KINDS)
def test_search_is_no_worse_than_plain_rounding(kind: str) -> None:
    """By the error that the search minimizes, which weighs large weights more; but for rounding scales to 8 bits."""
    values = make(kind).astype(np.float64)
    size = np.abs(values).reshape(SHAPE[0], -1, BLOCK)
    weight = (np.sqrt(np.square(size).mean(2, keepdims=True)) + size).reshape(SHAPE)

    def error(grid: Grid | None) -> float:
        difference = restored("q4", make(kind), grid) - values
        return float((weight * np.square(difference)).sum())

    rounding = np.square(1.15 * spans(values).max(1, keepdims=True) * 1.01 / 510)
    assert error(None) <= error(plain_grid(make(kind), 15)) + float((weight * rounding).sum()) + 1e-90


BLOCKS = arrays(np.float32, (1, BLOCK), elements=st.floats(-2.0 ** 20, 2.0 ** 20, width=32) | st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 1e-6]))


@settings(max_examples=300, deadline=None)
@given(values=BLOCKS, name=st.sampled_from(sorted(TOPS)))
def test_search_of_any_block(values: np.ndarray, name: str) -> None:
    """Before scales are rounded to 8 bits, block by block."""
    top = TOPS[name]
    scale, minimum = np.full(1, np.nan, np.float32), np.full(1, np.nan, np.float32)
    _search_affine(values, scale, minimum, np.empty((0, BLOCK), np.float32), top)
    assert np.isfinite(scale[0]) and scale[0] >= 0
    assert np.isfinite(minimum[0]) and minimum[0] >= 0
    exact = values.astype(np.float64)[0]
    weight = np.sqrt(np.square(exact).mean()) + np.abs(exact)

    def error(s: float, m: float) -> float:
        q = np.clip(np.rint((exact + m) / s), 0, top) if s > 0 else 0
        return float((weight * np.square(s * q - m - exact)).sum())

    plain = plain_grid(values, top)
    slack = 1e-10 * float((weight * np.square(exact)).sum()) + 1e-80
    assert error(float(scale[0]), float(minimum[0])) <= 1.0001 * error(float(plain.scale[0, 0]),
                                                                      float(plain.minimum[0, 0])) + slack


def q4_0(random: np.random.Generator) -> tuple[np.ndarray, Grid]:
    d = (random.standard_normal((64, 8)) * 0.01 + 0.05).astype(np.float16).astype(np.float32)
    q = random.integers(0, 16, (64, 8, BLOCK))
    return ((q - 8) * d[..., None]).reshape(SHAPE).astype(np.float32), Grid(d, 8 * d)


def q4_1(random: np.random.Generator) -> tuple[np.ndarray, Grid]:
    d, m = ((random.random((64, 8)) * 0.05 + 0.01).astype(np.float16).astype(np.float32) for _ in range(2))
    q = random.integers(0, 16, (64, 8, BLOCK))
    return (q * d[..., None] - 8 * m[..., None]).reshape(SHAPE).astype(np.float32), Grid(d, 8 * m)


def q4_k(random: np.random.Generator) -> tuple[np.ndarray, Grid]:
    raw = random.integers(0, 256, (64, 144), dtype=np.uint8)
    raw[:, :4] = (random.random((64, 2)) * 0.01 + 0.001).astype(np.float16).view(np.uint8)
    scales, minimums = Q4_K.get_scale_min(raw[:, 4:16])
    d, dmin = (np.ascontiguousarray(raw[:, at:at + 2]).view(np.float16).astype(np.float32) for at in (0, 2))
    return dequantize(raw, Type.Q4_K).reshape(SHAPE), Grid(d * scales, dmin * minimums)


@pytest.mark.parametrize("source", [q4_0, q4_1, q4_k])
def test_a_grid_is_carried_over(source: Callable[[np.random.Generator], tuple[np.ndarray, Grid]]) -> None:
    """Every integer stays where it was but for rounding scale and minimum to 1/255 of the row's largest (and that row's
    unit to bfloat16): no weight is off by more than 15 / 2 units of scale and 1 / 2 of minimum."""
    values, grid = source(np.random.default_rng(3))
    unit, unit_minimum = (1.01 * v.max(1)[:, None] / 255 for v in (grid.scale, grid.minimum))
    error = np.abs(restored("q4", values, grid) - values)
    assert (error <= 15 / 2 * unit + unit_minimum / 2 + 1e-6).all()
    assert rms(error) < 0.02 * rms(values)
    searched = restored("q4", values) - values
    assert rms(error) <= rms(searched)


def test_negative_scales_of_a_grid_are_searched_anew() -> None:
    values = make("normal")
    wrong = Grid(np.full((64, 8), -1, np.float32), np.full((64, 8), -1, np.float32))
    np.testing.assert_array_equal(restored("q4", values, wrong), restored("q4", values))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (15, 33), (17, 31), (16, 32), (33, 100)])
def test_padding(name: str, shape: tuple[int, int]) -> None:
    """A matrix of any shape is its own tiles and blocks with zeros behind; what stands in front does not change."""
    form, values = FORMATS[name], taken(name, make("normal")[:shape[0], :shape[1]])
    tiles = packed(form, values)
    assert tiles.shape == (-(-shape[0] // 16), form.tile_bytes(shape[1]))
    padded = np.zeros((-(-shape[0] // 16) * 16, -(-shape[1] // 32) * 32), np.float32)
    padded[:shape[0], :shape[1]] = values
    in_floats = form.activation is Activation.FLOAT
    np.testing.assert_array_equal(tiles, pack(form, padded if in_floats else quantize(form, padded)))
    whole = unpack(form, tiles)
    assert (whole[shape[0]:] == 0).all()
    if name in ("q8", "f16", "f32", "ternary", "q4n"):
        assert (whole[:, shape[1]:] == 0).all()


@pytest.mark.parametrize("name", FORMATS)
def test_rows_do_not_depend_on_their_neighbours(name: str) -> None:
    """Converting in parts gives what converting at once gives."""
    form, values = FORMATS[name], taken(name, make("heavy-tailed"))
    parts = [packed(form, values[at:at + 16]) for at in range(0, 64, 16)]
    np.testing.assert_array_equal(packed(form, values), np.concatenate(parts))


@pytest.mark.parametrize("name", FORMATS)
def test_the_largest_weights(name: str) -> None:
    values = np.full((16, 32), LARGEST[name], np.float32)
    values[0, :16], values[1] = -values[0, :16], 0
    values = taken(name, values)
    back = restored(name, values)
    assert np.isfinite(back).all()
    assert (np.abs(back - values) <= 0.02 * LARGEST[name]).all()


@pytest.mark.parametrize("form", ["q4", "q8", "f16", "f32"])
def test_rows_of_neurons_come_back(form: str) -> None:
    """As near as their format holds; what fills them up is exactly 0, but for q4."""
    values = np.random.default_rng(0).standard_normal((37, 70)).astype(np.float32)
    back = unpack_rows(form, packed_rows(form, values))
    assert back.shape == (37, 96) and (form == "q4" or not back[:, 70:].any())
    assert np.abs(back[:, :70] - values).max() < {"q4": 0.35, "q8": 0.03, "f16": 2e-3, "f32": 1e-30}[form]
