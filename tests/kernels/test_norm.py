import numpy as np
import pytest
import rig
from guarded import Buffer, floats
from hypothesis import given
from hypothesis import strategies as st
from weights_for import seeds, values

from edgert.kernels import records
from edgert.kernels.formats import QUANTIZED_BLOCK
from edgert.kernels.team import Team


def norm(team: Team, x: np.ndarray, weight: np.ndarray, epsilon: float, *, as_float: bool = True,
         as_blocks: bool = True, selected: list[int] | None = None) -> tuple[Buffer, Buffer, bool]:
    """The float rows, the quantized rows, and whether all was finite."""
    columns = x.shape[1]
    blocks = rig.blocks(columns)
    source, scale = floats(rig.padded(x, 32), shift=4), floats(rig.padded(weight, 32), shift=8)
    rows = len(x) if selected is None else len(selected)
    out, quantized = Buffer(rows, 128 * blocks), Buffer(rows, QUANTIZED_BLOCK * blocks)
    indices = np.array(selected or [0], dtype=np.int64)
    team.set(tokens=len(x), selected=rows, selected_rows=indices.ctypes.data)
    finite = rig.run(team, (records.NORM, records.Norm(
        source.address, source.stride, scale.address, columns, blocks, rig.bits(epsilon),
        out.address if as_float else 0, out.stride, quantized.address if as_blocks else 0, quantized.stride,
        int(selected is not None))))
    out.check()
    quantized.check()
    return out, quantized, finite


def definition(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(1, keepdims=True) + float(np.float32(epsilon))) * weight


@rig.examples(30)
@given(seed=seeds, kind=st.sampled_from(["ordinary", "large", "denormal", "zero", "mixed"]),
       tokens=st.integers(1, 9), columns=st.integers(1, 200), epsilon=st.sampled_from([1e-6, 1e-5]))
def test_against_the_definition(target: str, seed: int, kind: str, tokens: int, columns: int, epsilon: float) -> None:
    rng = np.random.default_rng(seed)
    x, weight = values(rng, kind, (tokens, columns)), values(rng, "ordinary", (columns,))
    out, quantized, finite = norm(rig.team(target), x, weight, epsilon)
    assert finite
    got = out.view(np.float32)
    assert np.allclose(got[:, :columns], definition(x, weight, epsilon), rtol=(columns / 32 + 16) * 2**-24, atol=1e-38)
    assert not got[:, columns:].any()
    again, _ = rig.quantize(rig.team(target), got.copy())
    as_values = rig.Activations(quantized, integer=True)
    assert np.array_equal(as_values.raw, again.raw)


def test_either_result_may_be_left_out(target: str) -> None:
    x, weight = np.ones((2, 40), np.float32), np.ones(40, np.float32)
    out, quantized, _ = norm(rig.team(target), x, weight, 1e-6, as_blocks=False)
    assert np.isfinite(out.view(np.float32)).all() and (quantized.bytes == 0xFF).all()
    out, quantized, _ = norm(rig.team(target), x, weight, 1e-6, as_float=False)
    assert (out.bytes == 0xFF).all() and rig.Activations(quantized, integer=True).q.any()


def test_only_the_selected_rows(target: str) -> None:
    rng = np.random.default_rng(3)
    x, weight = values(rng, "ordinary", (7, 50)), values(rng, "ordinary", (50,))
    every, _, _ = norm(rig.team(target, 3), x, weight, 1e-6)
    some, _, _ = norm(rig.team(target, 3), x, weight, 1e-6, selected=[6, 0, 3])
    assert np.array_equal(some.bytes, every.bytes[[6, 0, 3]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_reported(target: str, bad: float) -> None:
    x = np.ones((3, 50), np.float32)
    x[2, 49] = bad
    _, _, finite = norm(rig.team(target), x, np.ones(50, np.float32), 1e-6)
    assert not finite
