"""The feed-forward part of sparse models: neurons one by one, those that are zero left out."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import rig
from guarded import Buffer, floats
from hypothesis import given
from hypothesis import strategies as st
from weights_for import seeds

from edgert.kernels import records
from edgert.kernels.formats import FORMATS, Quantized, round_bf16
from edgert.kernels.neuron_rows import NeuronUnits, neuron_units, pack_rows, row_bytes, unpack_rows
from edgert.kernels.records import ABSENT, HIDDEN_ACTS, WAIT, Code
from edgert.kernels.team import Team


class Layer(NamedTuple):
    """A sparse layer's units, each wherever memory had room, and the weights that they hold, float64. deciding: rows of
    the matrix that decides, where a predictor says what is computed; deciding_bias: float32 for each neuron."""

    units: NeuronUnits
    memory: Buffer
    table: np.ndarray
    deciding: np.ndarray | None
    deciding_bias: np.ndarray
    up: np.ndarray | None
    down: np.ndarray
    forms: tuple[str, str]
    bias: np.ndarray


def vectors(rng: np.random.Generator, form: str, rows: int, columns: int) -> np.ndarray:
    """Packed vectors of random weights about as large as 1."""
    blocks = rig.blocks(columns)
    if form in ("f16", "f32"):
        return pack_rows(form, rig.padded(rng.standard_normal((rows, columns)).astype(np.float32), 32))
    if form == "q8":
        q = rng.integers(-127, 128, (rows, 32 * blocks)).astype(np.int8)
        return pack_rows(form, Quantized(q, round_bf16(rng.random((rows, blocks)).astype(np.float32) / 40)))
    q, s, m = (rng.integers(0, top, (rows, count)).astype(np.uint8)
               for top, count in ((16, 32 * blocks), (256, blocks), (256, blocks)))
    scale, minimum = (round_bf16((rng.random(rows) * size).astype(np.float32)) for size in (1e-3, 1e-2))
    return pack_rows(form, Quantized(q, s, m, scale, minimum))


def layer(rng: np.random.Generator, up: str, down: str, hidden_size: int, neurons: int, *, gated: bool,
          predicted: bool = False) -> Layer:
    units = neuron_units(hidden_size, up, down, gated=gated, predicted=predicted)
    parts, weights = [], []
    for form in [up] * predicted + [up] * gated + [down]:
        packed = vectors(rng, form, neurons, hidden_size)
        assert packed.shape == (neurons, row_bytes(form, hidden_size))
        parts.append(packed)
        weights.append(unpack_rows(form, packed)[:, :hidden_size].astype(np.float64))
    rows = np.concatenate(parts, 1)
    count = units.count(neurons)
    filled = np.pad(rows, ((0, count * units.neurons - neurons), (0, 0))).reshape(count, -1)
    memory = Buffer(count, units.unit_bytes, gap=int(rng.integers(1, 99)), shift=int(rng.integers(0, 64)))
    places = rng.permutation(count)
    memory.bytes[places, :filled.shape[1]] = filled
    return Layer(units, memory, memory.address + places.astype(np.int64) * memory.stride,
                 weights[0] if predicted else None, rng.standard_normal(neurons).astype(np.float32),
                 weights[-2] if gated else None, weights[-1], (up, down),
                 rig.padded(rng.standard_normal(hidden_size).astype(np.float32), 16))


def computed(team: Team, n: Layer, products: np.ndarray, x: np.ndarray, y: np.ndarray, act: str, *, threads: int,
             resident: int = 0, table: np.ndarray | None = None, fresh: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """y + down(act(products) * up x) + bias, by the operations for so many tokens; and what CHOOSE wrote."""
    tokens, hidden_size, neurons = len(x), x.shape[1], products.shape[1]
    count, blocks, tiles = n.units.count(neurons), rig.blocks(hidden_size), rig.tiles(hidden_size)
    given, rows, out = floats(rig.padded(products, 16)), floats(rig.padded(x, 32)), floats(rig.padded(y, 16))
    chosen, partial = Buffer(1, 8 * count), Buffer(1, records.partial_bytes(tiles))
    scratch = Buffer(threads, records.sparse_scratch_bytes(blocks))
    table = n.table if table is None else table
    team.set(tokens=tokens)
    record = records.Sparse(
        table.ctypes.data, count, n.units.neurons, neurons, n.units.neuron_bytes, n.units.deciding_bytes,
        n.deciding_bias.ctypes.data if n.deciding is not None else 0, n.units.up_bytes,
        FORMATS[n.forms[0]].code, FORMATS[n.forms[1]].code, blocks, given.address, given.stride, chosen.address,
        rows.address, rows.stride, HIDDEN_ACTS.index(act), scratch.address, scratch.stride, tiles, partial.address,
        out.address, out.stride, n.bias.ctypes.data, fresh)
    choose = records.Choose(given.address, given.stride, count, n.units.neurons, neurons, chosen.address,
                            table.ctypes.data, resident, 0, 0, 0, 0, 0)
    codes = (Code.SPARSE_ONE, Code.SPARSE_GATHER) if tokens == 1 else (Code.SPARSE_UP, Code.SPARSE_DOWN)
    assert rig.run(team, (Code.CHOOSE, choose))
    needed = chosen.view(np.int64)[0].copy()
    assert rig.run(team, *((code, record) for code in codes))
    for buffer in (given, rows, out, chosen, partial, scratch, n.memory):
        buffer.check()
    return out.view(np.float32)[:, :hidden_size].copy(), needed


def some(rng: np.random.Generator, tokens: int, neurons: int, share: float) -> np.ndarray:
    """Products, of which so many are above zero."""
    signs = np.where(rng.random((tokens, neurons)) < share, 1, -1)
    return (np.abs(rng.standard_normal((tokens, neurons))) * signs).astype(np.float32)


shapes = {"hidden_size": st.integers(1, 1100), "neurons": st.integers(1, 400),
          "act": st.sampled_from(["relu", "relu2"]), "gated": st.booleans(), "predicted": st.booleans(),
          "share": st.sampled_from([0.0, 0.02, 0.5, 1.0])}


@pytest.mark.parametrize(("up", "down"), [("q4", "q4"), ("q4", "q8"), ("q8", "f16"), ("f16", "f32"), ("f32", "q4")])
@rig.examples(12)
@given(seed=seeds, tokens=st.sampled_from([1, 2, 5, 40]), **shapes)
def test_against_float64(target: str, up: str, down: str, seed: int, hidden_size: int, neurons: int, tokens: int,
                         act: str, gated: bool, predicted: bool, share: float) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target, 3)
    n = layer(rng, up, down, hidden_size, neurons, gated=gated, predicted=predicted)
    products, x = some(rng, tokens, neurons, share), rng.standard_normal((tokens, hidden_size)).astype(np.float32)
    y = rng.standard_normal((tokens, hidden_size)).astype(np.float32)
    got, _ = computed(team, n, products, x, y, act, threads=3)
    decided, uncertain = products.astype(np.float64), np.zeros(products.shape)
    if n.deciding is not None:  # of those that the predictor is for
        exact = x.astype(np.float64) @ n.deciding.T + n.deciding_bias
        decided = np.where(products > 0, exact, 0)
        uncertain = np.where(products > 0, np.abs(x) @ np.abs(n.deciding).T + np.abs(n.deciding_bias), 0)
    power = {"relu": 1, "relu2": 2}[act]
    h = np.maximum(decided, 0) ** power
    size = np.maximum(np.abs(h), uncertain ** power)
    if n.up is not None:
        size = size * (np.abs(x) @ np.abs(n.up).T)
        h = h * (x.astype(np.float64) @ n.up.T)
    expected = y + h @ n.down + n.bias[:hidden_size]
    assert (np.abs(got - expected) <= 2e-5 * (size @ np.abs(n.down) + np.abs(expected) + 1)).all()


@pytest.mark.parametrize(("up", "down"), [("q4", "q4"), ("q8", "q8"), ("f16", "f32")])
@rig.examples(8)
@given(seed=seeds, tokens=st.integers(2, 70), **shapes)
def test_neither_the_threads_nor_other_tokens_matter(target: str, up: str, down: str, seed: int, hidden_size: int,
                                                     neurons: int, tokens: int, act: str, gated: bool,
                                                     predicted: bool, share: float) -> None:
    rng = np.random.default_rng(seed)
    n = layer(rng, up, down, hidden_size, neurons, gated=gated, predicted=predicted)
    products, x = some(rng, tokens, neurons, share), rng.standard_normal((tokens, hidden_size)).astype(np.float32)
    y = rng.standard_normal((tokens, hidden_size)).astype(np.float32)
    blank = np.full_like(y, np.nan)
    assert np.array_equal(computed(rig.team(target), n, products, x, blank, act, threads=1, fresh=1)[0],
                          computed(rig.team(target), n, products, x, np.zeros_like(y), act, threads=1)[0])
    every = [computed(rig.team(target, threads), n, products, x, y, act, threads=threads)[0] for threads in (1, 3)]
    assert np.array_equal(*(found.view(np.int32) for found in every))
    for token in range(0, tokens, 7):
        alone, _ = computed(rig.team(target, 2), n, *(of[token:token + 1] for of in (products, x, y)), act, threads=2)
        assert np.array_equal(alone.view(np.int32), every[0][token:token + 1].view(np.int32))


@rig.examples(12)
@given(seed=seeds, tokens=st.integers(1, 5), **shapes)
def test_units_of_zeros_are_neither_needed_nor_read(target: str, seed: int, hidden_size: int, neurons: int, tokens: int,
                                                    act: str, gated: bool, predicted: bool, share: float) -> None:
    """And for a draft those that are not in memory take no part."""
    rng, team = np.random.default_rng(seed), rig.team(target, 2)
    n = layer(rng, "q4", "q4", hidden_size, neurons, gated=gated, predicted=predicted)
    products, x = some(rng, tokens, neurons, share / 10), rng.standard_normal((tokens, hidden_size)).astype(np.float32)
    y = np.zeros((tokens, hidden_size), np.float32)
    whole, needed = computed(team, n, products, x, y, act, threads=2)
    count = n.units.count(neurons)
    active = np.pad((products > 0).any(0), (0, count * n.units.neurons - neurons)).reshape(count, -1).any(1)
    assert np.array_equal(needed, np.where(active, WAIT, ABSENT))
    table = np.where(active, n.table, 8)  # no address of ours
    assert np.array_equal(computed(team, n, products, x, y, act, threads=2, table=table)[0], whole)
    there = rng.random(count) < 0.5
    partly, taken = computed(team, n, products, x, y, act, threads=2, resident=1, table=np.where(there, n.table, WAIT))
    assert np.array_equal(taken, np.where(active & there, WAIT, ABSENT))
    kept = np.repeat(there, n.units.neurons)[:neurons]
    alone, _ = computed(team, n, np.where(kept, products, -1).astype(np.float32), x, y, act, threads=2)
    assert np.array_equal(partly, alone)


@pytest.mark.parametrize("tokens", [1, 3])
def test_what_is_no_number_stays_none(target: str, tokens: int) -> None:
    rng, team = np.random.default_rng(0), rig.team(target, 2)
    n = layer(rng, "q4", "q4", 64, 300, gated=True)
    products, x = np.full((tokens, 300), -1, np.float32), np.ones((tokens, 64), np.float32)
    products[0, 200] = np.nan
    got, _ = computed(team, n, products, x, np.zeros_like(x), "relu", threads=2)
    assert np.isnan(got[0]).all() and np.isfinite(got[1:]).all()


@pytest.mark.parametrize("hidden_size", [64, 2048, 4096, 5120, 16384])
def test_a_unit_is_whole_pages_and_holds_whole_neurons(hidden_size: int) -> None:
    for gated, predicted in itertools.product((True, False), repeat=2):
        units = neuron_units(hidden_size, "q4", "q4", gated=gated, predicted=predicted)
        assert units.unit_bytes % 4096 == 0 and units.neurons >= 1
        assert units.unit_bytes - 4096 * (units.neurons == 1) <= 6 * 4096
        assert 0.75 * units.unit_bytes < units.neurons * units.neuron_bytes <= units.unit_bytes
