import numpy as np
import pytest
import rig
from guarded import Buffer, floats
from hypothesis import given
from hypothesis import strategies as st
from weights_for import kinds, seeds, values

from edgert.kernels import records
from edgert.kernels.formats import FINE_BLOCK, QUANTIZED_BLOCK, Activation
from edgert.kernels.records import Code

forms = pytest.mark.parametrize("form", [Activation.QUANTIZED, Activation.FINE])


@rig.examples(30)
@given(seed=seeds, kind=kinds, tokens=st.integers(1, 9), columns=st.integers(1, 130))
def test_blocks_hold_the_row(target: str, seed: int, kind: str, tokens: int, columns: int) -> None:
    x = values(np.random.default_rng(seed), kind, (tokens, columns))
    got, finite = rig.quantize(rig.team(target), x)
    assert finite
    exact = rig.padded(x.astype(np.float64), 32).reshape(tokens, -1, 32)
    largest = np.abs(exact).max(2, keepdims=True)
    assert np.abs(got.q).max() <= 127
    assert np.allclose(got.scale, largest / 127, rtol=2**-22, atol=2.0**-149)
    # Half a step, and what float32 loses on the way; below 1e-30 all is zero.
    allowed = np.where(largest > 1e-30, largest / 127 * (0.5 + 1e-4), largest)
    assert (np.abs(got.values.reshape(exact.shape) - exact) <= allowed + 2.0**-149).all()
    assert (np.abs(got.q).max(2, keepdims=True) == np.where(largest > 1e-30, 127, 0)).all()
    assert np.array_equal(got.raw["scaled_sum"], got.raw["scale"] * got.q.sum(2).astype(np.float32))
    finer, finite = rig.quantize(rig.team(target), x, Activation.FINE)
    assert finite
    allowed = np.where(largest > 1e-30, largest / 127 * (0.5 / 128 + 1e-4), largest)
    assert (np.abs(finer.values.reshape(exact.shape) - exact) <= allowed + 32 * 2.0**-149).all()
    assert np.array_equal(finer.q, got.q)
    assert np.abs(finer.raw["r"]).max() <= 64
    assert np.array_equal(finer.raw["sum"], finer.numbers.sum(2))
    assert np.array_equal(finer.raw["scale"], got.raw["scale"] / np.float32(128))


@rig.examples(10)
@given(seed=seeds, tokens=st.integers(1, 9), columns=st.integers(1, 130), threads=st.integers(1, 3))
def test_both_forms_in_one_operation(target: str, seed: int, tokens: int, columns: int, threads: int) -> None:
    """Each is what it is alone."""
    x, team = values(np.random.default_rng(seed), "mixed", (tokens, columns)), rig.team(target, threads)
    source, blocks = floats(rig.padded(x, 32)), rig.blocks(columns)
    quantized, fine = Buffer(tokens, blocks * QUANTIZED_BLOCK), Buffer(tokens, blocks * FINE_BLOCK, gap=24)
    team.set(tokens=tokens)
    assert rig.run(team, (Code.QUANTIZE, records.Quantize(
        source.address, source.stride, blocks, quantized.address, quantized.stride, fine.address, fine.stride)))
    for buffer, form in ((quantized, Activation.QUANTIZED), (fine, Activation.FINE)):
        buffer.check()
        assert np.array_equal(buffer.bytes, rig.quantize(team, x, form)[0].buffer.bytes)


@forms
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_reported(target: str, form: Activation, bad: float) -> None:
    team = rig.team(target, 2)
    for place in (0, 15, 16, 31, 32, 40, 99):
        x = np.ones((3, 100), dtype=np.float32)
        x[1, place] = bad
        assert not rig.quantize(team, x, form)[1], place
    assert rig.quantize(team, np.ones((3, 100), dtype=np.float32), form)[1], "the next run starts without the error"


@forms
def test_the_largest_float_is_finite(target: str, form: Activation) -> None:
    x = np.full((1, 32), np.finfo(np.float32).max, dtype=np.float32)
    x[0, ::2] *= -1
    got, finite = rig.quantize(rig.team(target), x, form)
    assert finite and (np.abs(got.q) == 127).all() and np.isfinite(got.scale).all()
