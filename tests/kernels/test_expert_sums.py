"""Experts and gated linear units against float64; an expert's sums are the same bits however many tokens come."""

from typing import NamedTuple

import numpy as np
import pytest
import rig
from guarded import Buffer, floats
from hypothesis import given
from hypothesis import strategies as st
from swiglu import activation, beside_gate, neurons
from weights_for import PAIRS, Weights, matrix, seeds, values

from edgert.kernels.expert_records import LEFT_OUT, Dispatch, Experts, ExpertSums, Glu, expert_scratch_bytes
from edgert.kernels.expert_units import ExpertUnits
from edgert.kernels.formats import BLOCK, FINE_BLOCK, FORMATS, QUANTIZED_BLOCK, Activation, Format
from edgert.kernels.records import HIDDEN_ACTS, Code
from edgert.kernels.team import Team

ACTS = [act for act in HIDDEN_ACTS if not act.startswith("relu")]


class Mixture(NamedTuple):
    """Experts as bundles hold them, their units at shuffled places, and the matrices they came from. downs: of each
    expert one for each unit. biases: of gate, up and down, (experts, rows); or none."""

    units: ExpertUnits
    gates: list[Weights]
    ups: list[Weights]
    downs: list[list[Weights]]
    memory: Buffer
    table: np.ndarray
    biases: tuple[np.ndarray, ...]
    hidden_size: int
    act: str


def mixture(rng: np.random.Generator, up: Format, down: Format, hidden_size: int, groups: int, count: int, experts: int,
            act: str, *, biased: bool) -> Mixture:
    units = ExpertUnits.of(hidden_size, BLOCK * groups, up, down, count)
    gates, ups = ([matrix(rng, up, "ordinary", BLOCK * groups, hidden_size) for _ in range(experts)] for _ in range(2))
    downs = [[matrix(rng, down, "ordinary", hidden_size, BLOCK * units.groups_of(unit))
              for unit in range(units.per_expert)] for _ in range(experts)]
    memory = Buffer(experts * units.per_expert, units.unit_bytes)
    places = rng.permutation(experts * units.per_expert)
    for number, place in enumerate(places):
        expert, unit = divmod(number, units.per_expert)
        some = downs[expert][unit]
        body = some.packed[:, down.header_bytes:].reshape(len(some.packed), -1, down.block_bytes)
        for i in range(units.groups_of(unit)):
            group = 2 * (unit * units.in_unit + i)
            parts = [*(weights[expert].packed[group:group + 2] for weights in (gates, ups)), body[:, i]]
            bytes_of = np.concatenate([part.ravel() for part in parts])
            memory.bytes[place, i * units.group_bytes:i * units.group_bytes + len(bytes_of)] = bytes_of
        headers = some.packed[:, :down.header_bytes].ravel()
        memory.bytes[place, units.headers:units.headers + len(headers)] = headers
    rows = -(-hidden_size // 16) * 16
    biases = tuple(rng.standard_normal((experts, size)).astype(np.float32)
                   for size in (BLOCK * groups, BLOCK * groups, rows)) if biased else ()
    return Mixture(units, gates, ups, downs, memory, memory.address + places.astype(np.int64) * memory.stride, biases,
                   hidden_size, act)


def computed(team: Team, m: Mixture, x: rig.Activations, chosen: np.ndarray, weights: np.ndarray, y: np.ndarray,
             threads: int) -> np.ndarray:
    """y + the sum of each token's experts' results, each times its weight: DISPATCH, EXPERTS, EXPERT_SUMS."""
    (tokens, per_token), experts, units = chosen.shape, len(m.gates), m.units
    tiles, up, down = -(-m.hidden_size // 16), m.gates[0].form, m.downs[0][0].form
    pairs, out, short, counts = tokens * per_token, floats(y), np.zeros(1, np.int64), np.array([5, 7])
    made = {name: Buffer(1, size) for name, size in {
        "starts": 8 * (2 * experts + 2), "rows": 8 * pairs, "places": 8 * pairs,
        "claims": 8 * experts * (units.per_expert + 1), "totals": 64 * pairs * tiles,
        "partial": 64 * per_token * units.per_expert * tiles}.items()}
    scratch = Buffer(threads, expert_scratch_bytes(tiles, x.buffer.bytes.shape[1],
                                                   units.in_unit * down.activation.block_bytes, units.in_unit))
    biases = [bias.ctypes.data for bias in m.biases] or [0, 0, 0]
    starts, rows, places, claims, totals, partial = (buffer.address for buffer in made.values())
    table = m.table.ctypes.data
    team.set(tokens=tokens)
    assert rig.run(
        team,
        (Code.DISPATCH, Dispatch(chosen.ctypes.data, experts, per_token, starts, rows, places, claims, units.per_expert,
                                 table, 0, 0, 0, 0, 0, 0, short.ctypes.data, 0, 0, 0, 0, counts.ctypes.data)),
        (Code.EXPERTS, Experts(table, units.per_expert, units.groups, units.in_unit, up.code, x.blocks, down.code,
                               tiles, x.address, x.stride, HIDDEN_ACTS.index(m.act), experts, starts, rows, claims,
                               totals, partial, scratch.address, scratch.stride, 0, 0, short.ctypes.data, 0,
                               *biases[:2])),
        (Code.EXPERT_SUMS, ExpertSums(chosen.ctypes.data, weights.ctypes.data, per_token, places, starts, totals,
                                      partial, units.per_expert, tiles, out.address, out.stride, biases[2])))
    for buffer in (*made.values(), out, scratch, x.buffer, m.memory):
        buffer.check()
    assert counts.tolist() == [5 + tokens, 7 + int((chosen != LEFT_OUT).sum())]
    return out.view(np.float32).copy()


def exact(m: Mixture, x: np.ndarray, chosen: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is added, in float64, and the sum of the sizes of all that makes it up."""
    rows = m.downs[0][0].exact.shape[0]
    made, size = np.zeros((len(x), rows)), np.zeros((len(x), rows))
    like = neurons(np.random.default_rng(0), FORMATS["f32"], FORMATS["f32"], 32, 1, act=m.act)
    of_gate, of_up, of_down = m.biases or [np.zeros((len(m.gates), 1))] * 3
    for token, (experts, of) in enumerate(zip(chosen, weights.astype(np.float64), strict=True)):
        for expert, weight in zip(experts, of, strict=True):
            if expert == LEFT_OUT:
                continue
            gate = m.gates[expert].exact @ x[token] + of_gate[expert]
            hidden = activation(like, gate) * beside_gate(like, m.ups[expert].exact @ x[token] + of_up[expert])
            down = np.concatenate([part.exact for part in m.downs[expert]], 1)
            made[token] += weight * (down @ hidden + of_down[expert])
            most = np.repeat(np.abs(hidden).reshape(-1, BLOCK).max(1), BLOCK)  # by which a block is rounded
            parts = np.concatenate([np.abs(part.positive) + np.abs(part.negative) for part in m.downs[expert]], 1)
            size[token] += weight * (parts @ most + np.abs(of_down[expert]))
    return made, size


@pytest.mark.parametrize(("up_name", "down_name"), PAIRS)
@rig.examples(4)
@given(seed=seeds, hidden_size=st.integers(1, 100), groups=st.integers(1, 6), count=st.integers(1, 3),
       experts=st.integers(1, 9), tokens=st.integers(1, 40), threads=st.integers(1, 3), act=st.sampled_from(ACTS),
       biased=st.booleans(), left_out=st.sampled_from([0.0, 0.4, 1.0]))
def test_experts_against_float64(target: str, up_name: str, down_name: str, seed: int, hidden_size: int, groups: int,
                                 count: int, experts: int, tokens: int, threads: int, act: str, biased: bool,
                                 left_out: float) -> None:
    """The more tokens, the more an expert has; some have none. A token alone, whose units are computed one by one, gets
    the same bits as among others. What is left out of a token's experts, at most all but one, is passed over."""
    rng, team = np.random.default_rng(seed), rig.team(target, threads)
    up, down = FORMATS[up_name], FORMATS[down_name]
    m = mixture(rng, up, down, hidden_size, groups, min(count, groups), experts, act, biased=biased)
    x = values(rng, "ordinary", (tokens, hidden_size))
    per_token = int(rng.integers(1, min(experts, 4) + 1))
    chosen = np.stack([np.sort(rng.permutation(experts)[:per_token]) for _ in range(tokens)]).astype(np.int64)
    weights = rng.random((tokens, per_token), np.float32)
    out = rng.random(chosen.shape) < left_out
    out[np.arange(tokens), rng.integers(0, per_token, tokens)] = False
    chosen[out] = LEFT_OUT
    y = np.zeros((tokens, -(-hidden_size // 16) * 16), np.float32)
    y[:, :hidden_size] = rng.standard_normal((tokens, hidden_size))
    rows = rig.activations(team, up, x)
    got = computed(team, m, rows, chosen, weights, y, threads)
    added, size = exact(m, rows.values, chosen, weights)
    # Rounding what meets the down projection to 8 bits, or to 15.
    coarse = {Activation.FLOAT: 0.0, Activation.QUANTIZED: 1 / 127, Activation.FINE: 2**-14}[down.activation]
    wrong = np.abs(got - y - added[:, :y.shape[1]])
    assert (wrong <= (2e-4 + 2 * coarse) * size[:, :y.shape[1]].max() + 1e-5).all()
    token = int(rng.integers(tokens))
    some = slice(token, token + 1)
    alone = computed(team, m, rig.activations(team, up, x[some]), chosen[some].copy(), weights[some].copy(),
                     y[some], threads)
    assert np.array_equal(alone.view(np.int32), got[some].view(np.int32))


@rig.examples(20)
@given(seed=seeds, columns=st.integers(1, 130), tokens=st.integers(1, 9), act=st.sampled_from(ACTS),
       weighed=st.booleans())
def test_glu_against_float64(target: str, seed: int, columns: int, tokens: int, act: str, weighed: bool) -> None:
    """In all forms; zeros behind a row, whatever stands there."""
    rng, team = np.random.default_rng(seed), rig.team(target, 2)
    gate, up = (values(rng, "ordinary", (tokens, columns)) * np.float32(4) for _ in range(2))
    weight, blocks = values(rng, "ordinary", (tokens, 1)), -(-columns // BLOCK)
    behind = np.full((tokens, BLOCK + 16), 3e38, np.float32)
    x = floats(np.concatenate([gate, up, weight, behind], 1))
    out = {size: Buffer(tokens, blocks * size) for size in (4 * BLOCK, QUANTIZED_BLOCK, FINE_BLOCK)}
    team.set(tokens=tokens)
    assert rig.run(team, (Code.GLU, Glu(x.address, x.stride, columns, HIDDEN_ACTS.index(act), int(weighed), *(
        number for buffer in out.values() for number in (buffer.address, buffer.stride)))))
    like = neurons(rng, FORMATS["f32"], FORMATS["f32"], 32, 1, act=act)
    expected = activation(like, gate.astype(np.float64)) * beside_gate(like, up.astype(np.float64))
    if weighed:
        expected /= 1 + np.exp(-weight.astype(np.float64))
    made = out[4 * BLOCK].view(np.float32)
    assert np.allclose(made[:, :columns], expected, rtol=1e-5, atol=1e-6) and not made[:, columns:].any()
    for form, size in ((Activation.QUANTIZED, QUANTIZED_BLOCK), (Activation.FINE, FINE_BLOCK)):
        wanted, _ = rig.quantize(team, made.copy(), form)
        assert np.array_equal(out[size].bytes[:, :36], wanted.buffer.bytes[:, :36])
    for buffer in (x, *out.values()):
        buffer.check()
