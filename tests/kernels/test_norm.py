from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pytest
import rig
from guarded import Buffer, floats
from hypothesis import given
from hypothesis import strategies as st
from weights_for import seeds, values

from edgert.kernels import records
from edgert.kernels.formats import Activation
from edgert.kernels.records import Code
from edgert.kernels.team import Team

ALL = frozenset(Activation)


class Normed(NamedTuple):
    """A norm's rows in each form, and whether all was finite."""

    rows: dict[Activation, Buffer]
    finite: bool

    @property
    def floats(self) -> np.ndarray:
        return self.rows[Activation.FLOAT].view(np.float32)


def norm(team: Team, x: np.ndarray, weight: np.ndarray, epsilon: float, *, forms: Collection[Activation] = ALL,
         selected: list[int] | None = None, bias: np.ndarray | None = None, centered: bool = False) -> Normed:
    """With a bias, or centered, LayerNorm, otherwise RMSNorm."""
    columns = x.shape[1]
    blocks = rig.blocks(columns)
    source, scale = floats(rig.padded(x, 32), shift=4), floats(rig.padded(weight, 32), shift=8)
    rows = len(x) if selected is None else len(selected)
    outs = {form: Buffer(rows, form.block_bytes * blocks) for form in Activation}
    indices = np.array(selected or [0], dtype=np.int64)
    team.set(tokens=len(x), selected=rows, selected_rows=indices.ctypes.data)
    places = [number for form in (Activation.FLOAT, Activation.QUANTIZED, Activation.FINE)
              for number in (outs[form].address if form in forms else 0, outs[form].stride)]
    record = records.Norm(source.address, source.stride, scale.address, columns, blocks, rig.bits(epsilon), *places,
                          int(selected is not None))
    if bias is None:
        finite = rig.run(team, (Code.LAYER_NORM if centered else Code.NORM, record))
    else:
        offset = floats(rig.padded(bias, 32), shift=8)
        finite = rig.run(team, (Code.LAYER_NORM, record._replace(bias=offset.address)))
    for out in outs.values():
        out.check()
    return Normed(outs, finite)


def definition(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(1, keepdims=True) + float(np.float32(epsilon))) * weight


@rig.examples(30)
@given(seed=seeds, kind=st.sampled_from(["ordinary", "large", "denormal", "zero", "mixed"]),
       tokens=st.integers(1, 9), columns=st.integers(1, 200), epsilon=st.sampled_from([1e-6, 1e-5]))
def test_against_the_definition(target: str, seed: int, kind: str, tokens: int, columns: int, epsilon: float) -> None:
    rng = np.random.default_rng(seed)
    x, weight = values(rng, kind, (tokens, columns)), values(rng, "ordinary", (columns,))
    out = norm(rig.team(target), x, weight, epsilon)
    assert out.finite
    got = out.floats
    assert np.allclose(got[:, :columns], definition(x, weight, epsilon), rtol=(columns / 32 + 16) * 2**-24, atol=1e-38)
    assert not got[:, columns:].any()
    for form in (Activation.QUANTIZED, Activation.FINE):
        again, _ = rig.quantize(rig.team(target), got.copy(), form)
        assert np.array_equal(out.rows[form].bytes, again.buffer.bytes)


@rig.examples(30)
@given(seed=seeds, kind=st.sampled_from(["ordinary", "large", "denormal", "zero", "mixed"]),
       tokens=st.integers(1, 9), columns=st.integers(1, 200), epsilon=st.sampled_from([1e-6, 1e-5]))
def test_layer_norm_against_the_definition(target: str, seed: int, kind: str, tokens: int, columns: int,
                                           epsilon: float) -> None:
    """What stands behind the columns is not counted, whatever the mean."""
    rng = np.random.default_rng(seed)
    x, weight, bias = (values(rng, k, shape) for k, shape in (
        (kind, (tokens, columns)), ("ordinary", (columns,)), ("ordinary", (columns,))))
    x += np.float32(3)
    out = norm(rig.team(target), x, weight, epsilon, bias=bias)
    assert out.finite
    wide = x.astype(np.float64)
    centred = wide - wide.mean(1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(1, keepdims=True) + float(np.float32(epsilon)))
    got, expected = out.floats, centred * scale * weight + bias
    # The mean is off by some units of the largest; that is as much of a difference in every column.
    largest = np.abs(wide).max(1, keepdims=True) * scale
    error = (columns / 16 + 24) * 2**-24 * (largest * (1 + np.abs(centred * scale)) + 1)
    assert (np.abs(got[:, :columns] - expected) <= error * np.abs(weight) + 2**-23 * np.abs(expected)
            + 2**-23 * np.abs(bias)).all()
    assert not got[:, columns:].any()
    for form in (Activation.QUANTIZED, Activation.FINE):
        again, _ = rig.quantize(rig.team(target), got.copy(), form)
        assert np.array_equal(out.rows[form].bytes, again.buffer.bytes)


def test_layer_norm_without_a_bias(target: str) -> None:
    rng = np.random.default_rng(5)
    x, weight = values(rng, "ordinary", (4, 70)), values(rng, "ordinary", (70,))
    zeros, none = (norm(rig.team(target), x, weight, 1e-5, bias=bias, centered=True)
                   for bias in (np.zeros(70, np.float32), None))
    for form in ALL:
        assert np.array_equal(none.rows[form].bytes, zeros.rows[form].bytes)


biases = pytest.mark.parametrize("bias", [None, 0.5], ids=["RMSNorm", "LayerNorm"])


def _of(columns: int, bias: float | None) -> np.ndarray | None:
    return None if bias is None else np.full(columns, bias, np.float32)


@biases
@pytest.mark.parametrize("form", Activation)
def test_any_form_may_be_left_out(target: str, form: Activation, bias: float | None) -> None:
    x, weight = np.ones((2, 40), np.float32), np.ones(40, np.float32)
    every = norm(rig.team(target), x, weight, 1e-6, bias=_of(40, bias))
    for forms in ({form}, ALL - {form}):
        some = norm(rig.team(target), x, weight, 1e-6, forms=forms, bias=_of(40, bias))
        for each in Activation:
            expected = every.rows[each].bytes if each in forms else 0xFF
            assert (some.rows[each].bytes == expected).all()


@biases
def test_only_the_selected_rows(target: str, bias: float | None) -> None:
    rng = np.random.default_rng(3)
    x, weight = values(rng, "ordinary", (7, 50)), values(rng, "ordinary", (50,))
    every = norm(rig.team(target, 3), x, weight, 1e-6, bias=_of(50, bias))
    some = norm(rig.team(target, 3), x, weight, 1e-6, selected=[6, 0, 3], bias=_of(50, bias))
    for form in Activation:
        assert np.array_equal(some.rows[form].bytes, every.rows[form].bytes[[6, 0, 3]])


@biases
@pytest.mark.parametrize("form", Activation)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_reported(target: str, bad: float, form: Activation, bias: float | None) -> None:
    x = np.ones((3, 50), np.float32)
    x[2, 49] = bad
    assert not norm(rig.team(target), x, np.ones(50, np.float32), 1e-6, forms={form}, bias=_of(50, bias)).finite
