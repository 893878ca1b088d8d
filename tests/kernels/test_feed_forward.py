"""The feed-forward part: groups of 32 neurons, each wherever memory had room."""

from collections.abc import Sequence

import numpy as np
import pytest
import rig
from guarded import Buffer, floats
from hypothesis import given
from hypothesis import strategies as st
from swiglu import (
    PARTS,
    activation,
    activation_error,
    add_down,
    beside_gate,
    check_absent,
    hidden,
    neurons,
    one_token,
)
from weights_for import FORMAT_NAMES, PAIRS, product, seeds, values

from edgert.kernels import records
from edgert.kernels.formats import FINE_BLOCK, FORMATS
from edgert.kernels.records import HIDDEN_ACTS, Code

pairs = pytest.mark.parametrize(("up_name", "down_name"), PAIRS)
formats = pytest.mark.parametrize("name", FORMAT_NAMES)
parts = st.sampled_from(PARTS)


@formats
@rig.examples(12)
@given(seed=seeds, hidden_size=st.integers(1, 130), groups=st.integers(1, 6), part=parts,
       tokens=st.one_of(st.integers(1, 9), st.integers(31, 70)), kind=st.sampled_from(["ordinary", "mixed"]))
def test_up_against_float64(target: str, name: str, seed: int, hidden_size: int, groups: int, part: dict, tokens: int,
                            kind: str) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target, 2)
    n = neurons(rng, FORMATS[name], FORMATS["f32"], hidden_size, groups, kind, **part)
    x = rig.activations(team, n.up.form, values(rng, "ordinary", (tokens, hidden_size)))
    up, up_error = product(n.up, x.values)
    if n.gate is None:
        assert n.up_bias is not None
        gate, gate_error = up + n.up_bias, up_error + 2**-23 * np.abs(up + n.up_bias)
        up, up_error = np.ones_like(up), np.zeros_like(up_error)
    else:
        gate, gate_error = product(n.gate, x.values)
        up = beside_gate(n, up)
        up_error += 2**-23 * np.abs(up)
    act, act_error = activation(n, gate), activation_error(n, gate, gate_error)
    allowed = act_error * (np.abs(up) + up_error) + (np.abs(act) + act_error) * up_error + 1e-37
    got = hidden(team, n, x, threads=2).values
    assert (np.abs(got - act * up) <= allowed + 2**-23 * np.abs(act * up)).all()
    if n.act in ("relu", "relu2"):
        assert not got[gate < -gate_error].any()  # zeros that are zeros


@pytest.mark.parametrize("down_name", ["q4", "q6", "q8"])
@formats
@rig.examples(4)
@given(seed=seeds, hidden_size=st.integers(1, 130), groups=st.integers(1, 6), tokens=st.integers(1, 9))
def test_up_quantizes_as_quantize_does(target: str, name: str, down_name: str, seed: int, hidden_size: int,
                                       groups: int, tokens: int) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target)
    n = neurons(rng, FORMATS[name], FORMATS[down_name], hidden_size, groups)
    x = rig.activations(team, n.up.form, values(rng, "ordinary", (tokens, hidden_size)))
    as_floats = hidden(team, n, x, down=FORMATS["f32"]).buffer.view(np.float32).copy()
    want, _ = rig.quantize(team, as_floats, n.down.form.activation)
    assert np.array_equal(hidden(team, n, x).buffer.bytes, want.buffer.bytes)


@pairs
@rig.examples(2)
@given(seed=seeds, hidden_size=st.integers(1, 200), groups=st.integers(1, 19), tokens=st.integers(1, 9),
       gated=st.booleans(), cuts=st.sets(st.integers(1, records.SEGMENTS - 1), max_size=3).map(sorted))
def test_down_against_float64(target: str, up_name: str, down_name: str, seed: int, hidden_size: int, groups: int,
                              tokens: int, gated: bool, cuts: list[int]) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target, 2)
    n = neurons(rng, FORMATS[up_name], FORMATS[down_name], hidden_size, groups, gated=gated)
    h = rig.activations(team, n.down.form, values(rng, "ordinary", (tokens, 32 * groups)))
    y = values(rng, "ordinary", (tokens, len(n.down.exact)))
    exact, allowed = product(n.down, h.values)
    if n.down_bias is not None:
        exact += n.down_bias
        allowed += 2**-23 * (np.abs(exact) + np.abs(n.down_bias))
    got = add_down(team, n, h, y, cuts=cuts)
    assert (np.abs(got - (y + exact)) <= allowed + 2**-23 * (np.abs(y) + np.abs(exact))).all()


@pytest.mark.parametrize(("up_name", "down_name"), [
    ("q4", "q6"), ("q6", "q4"), ("q8", "q8"), ("f16", "f16"), ("f32", "f32")])
@rig.examples(4)
@given(seed=seeds, hidden_size=st.integers(1, 200), groups=st.integers(1, 19), part=parts, tokens=st.integers(2, 40))
def test_alone_or_with_others_on_any_number_of_threads(target: str, up_name: str, down_name: str, seed: int,
                                                        hidden_size: int, groups: int, part: dict,
                                                        tokens: int) -> None:
    rng = np.random.default_rng(seed)
    n = neurons(rng, FORMATS[up_name], FORMATS[down_name], hidden_size, groups, "mixed", **part)
    x, y = values(rng, "ordinary", (tokens, hidden_size)), values(rng, "ordinary", (tokens, len(n.down.exact)))

    def result(threads: int, first: int, last: int, cuts: Sequence[int] = ()) -> np.ndarray:
        team = rig.team(target, threads)
        h = hidden(team, n, rig.activations(team, n.up.form, x[first:last]), threads=threads)
        return add_down(team, n, h, y[first:last], cuts=cuts).view(np.int32)

    together = result(1, 0, tokens)
    for token in range(0, tokens, 1 + tokens // 4):
        assert np.array_equal(result(1, token, token + 1, range(1, records.SEGMENTS))[0], together[token])
    for threads in (2, 3, 4):
        assert np.array_equal(result(threads, 0, tokens, [threads, 9]), together), threads


@pytest.mark.parametrize("part", PARTS)
def test_values_that_are_not_finite_are_reported(target: str, part: dict) -> None:
    rng, team = np.random.default_rng(0), rig.team(target)
    n = neurons(rng, FORMATS["f32"], FORMATS["q8"], 64, 2, "large", **part)
    x = floats(np.full((1, 64), 1e37, np.float32))
    out, scratch = Buffer(1, 2 * FINE_BLOCK), Buffer(1, records.up_scratch_bytes(n.up.packed.shape[1]))
    team.set(tokens=1)
    assert not rig.run(team, (Code.UP, records.Up(
        n.up.form.code, n.table.ctypes.data, 2, 2, x.address, x.stride, out.address, out.stride, n.down.form.code,
        scratch.address, scratch.stride, 0, HIDDEN_ACTS.index(n.act), n.row_tiles, rig.address(n.up_bias))))


@pytest.mark.parametrize("part", PARTS)
def test_no_activation_hides_what_is_no_number(target: str, part: dict) -> None:
    rng, team = np.random.default_rng(0), rig.team(target)
    n = neurons(rng, FORMATS["f32"], FORMATS["f32"], 64, 2, **part)
    x = rig.activations(team, n.up.form, np.full((1, 64), np.nan, np.float32))
    assert np.isnan(hidden(team, n, x).values).all()


@pairs
@rig.examples(2)
@given(seed=seeds, hidden_size=st.integers(1, 200), groups=st.integers(1, 40), part=parts, threads=st.integers(1, 3))
def test_one_token_is_bit_equal_to_up_and_down(target: str, up_name: str, down_name: str, seed: int, hidden_size: int,
                                               groups: int, part: dict, threads: int) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target, threads)
    n = neurons(rng, FORMATS[up_name], FORMATS[down_name], hidden_size, groups, "mixed", **part)
    x, y = values(rng, "ordinary", (1, hidden_size)), values(rng, "ordinary", (1, len(n.down.exact)))
    given_x = rig.activations(team, n.up.form, x)
    expected = add_down(team, n, hidden(team, n, given_x, threads=threads), y)
    got = one_token(team, n, given_x, y, threads=threads)
    assert np.array_equal(got.view(np.int32), expected.view(np.int32))


@rig.examples(6)
@given(seed=seeds, hidden_size=st.integers(1, 200), groups=st.integers(1, 60), tokens=st.integers(2, 9), part=parts,
       cuts=st.sets(st.integers(1, records.SEGMENTS - 1), max_size=2).map(sorted))
def test_a_result_of_its_own(target: str, seed: int, hidden_size: int, groups: int, tokens: int, part: dict,
                             cuts: list[int]) -> None:
    """Not added to anything: what stood in its place does not count."""
    rng, team = np.random.default_rng(seed), rig.team(target, 2)
    n = neurons(rng, FORMATS["q4"], FORMATS["q6"], hidden_size, groups, **part)
    x = values(rng, "ordinary", (tokens, hidden_size))
    zeros, blank = (np.full((tokens, len(n.down.exact)), value, np.float32) for value in (0, np.nan))
    h = hidden(team, n, rig.activations(team, n.up.form, x), threads=2)
    expected = add_down(team, n, h, zeros)
    assert np.array_equal(add_down(team, n, h, blank, cuts=cuts, fresh=1), expected)
    first = rig.activations(team, n.up.form, x[:1])
    assert np.array_equal(one_token(team, n, first, blank[:1], threads=2, fresh=1), expected[:1])


@pytest.mark.parametrize(("up_name", "down_name"), [
    ("q4", "q6"), ("q6", "q4"), ("q8", "q8"), ("f16", "f16"), ("f32", "f32"), ("q4", "q8")])
@rig.examples(6)
@given(seed=seeds, hidden_size=st.integers(1, 130), groups=st.integers(1, 60), tokens=st.integers(1, 9),
       part=parts, threads=st.integers(1, 3),
       cuts=st.sets(st.integers(1, records.SEGMENTS - 1), max_size=2).map(sorted))
def test_absent_groups_add_nothing(target: str, up_name: str, down_name: str, seed: int, hidden_size: int, groups: int,
                                   tokens: int, part: dict, threads: int, cuts: list[int]) -> None:
    rng, team = np.random.default_rng(seed), rig.team(target, threads)
    n = neurons(rng, FORMATS[up_name], FORMATS[down_name], hidden_size, groups, **part)
    x, y = values(rng, "ordinary", (tokens, hidden_size)), values(rng, "ordinary", (tokens, len(n.down.exact)))
    absent = rng.choice(groups, rng.integers(1, groups + 1), replace=False).tolist()
    check_absent(team, n, absent, x, y, threads=threads, cuts=cuts)
