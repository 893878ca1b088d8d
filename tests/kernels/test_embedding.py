import numpy as np
import pytest
import rig
from guarded import Buffer, floats
from hypothesis import given
from hypothesis import strategies as st
from weights_for import FORMAT_NAMES, kinds, matrix, seeds, values

from edgert.kernels import records
from edgert.kernels.formats import FORMATS, unpack


@pytest.mark.parametrize("name", FORMAT_NAMES)
@rig.examples()
@given(seed=seeds, kind=kinds, rows=st.integers(1, 60), columns=st.integers(1, 130), tokens=st.integers(1, 9),
       scale=st.sampled_from([1.0, 25.298221588134766]))
def test_rows_of_the_matrix(target: str, name: str, seed: int, kind: str, rows: int, columns: int,
                            tokens: int, scale: float) -> None:
    """Each row comes from its own tile, wherever that was read to, and equals what formats.unpack says of it."""
    rng, form, team = np.random.default_rng(seed), FORMATS[name], rig.team(target, 2)
    packed = matrix(rng, form, kind, rows, columns).packed
    wanted = rng.integers(0, rows, tokens)
    tiles = Buffer(tokens, packed.shape[1], gap=7)
    tiles.bytes[:] = packed[wanted // 16]
    places = np.array([[tiles.address + i * tiles.stride, row % 16] for i, row in enumerate(wanted)], dtype=np.int64)
    out = Buffer(tokens, 128 * form.blocks(columns))
    team.set(tokens=tokens)
    assert rig.run(team, (records.Code.EMBEDDING, records.Embedding(
        form.code, places.ctypes.data, form.blocks(columns), out.address, out.stride,
        rig.bits(scale))))
    out.check()
    assert np.array_equal(out.view(np.float32), unpack(form, packed)[wanted] * np.float32(scale))


@pytest.mark.parametrize("name", FORMAT_NAMES)
@rig.examples(6)
@given(seed=seeds, kind=kinds, rows=st.integers(3, 60), columns=st.integers(1, 130), tokens=st.integers(1, 9),
       threads=st.integers(1, 3))
def test_positions_are_added(target: str, name: str, seed: int, kind: str, rows: int, columns: int, tokens: int,
                             threads: int) -> None:
    """Each token's own, whose slot is not what counts."""
    rng, form, team = np.random.default_rng(seed), FORMATS[name], rig.team(target, threads)
    packed = matrix(rng, form, kind, rows, columns).packed
    positions = rng.integers(0, rows - 2, tokens)
    given_tokens = np.zeros((tokens, records.TOKEN_BYTES // 8), np.int64)
    given_tokens[:, records.TOKEN.position // 8] = positions
    given_tokens[:, records.TOKEN.slot // 8] = 10 ** 9
    x = values(rng, "ordinary", (tokens, 32 * form.blocks(columns)))
    out, scratch = floats(x), Buffer(threads, 128)
    team.set(tokens=tokens, token_records=given_tokens.ctypes.data)
    assert rig.run(team, (records.Code.LEARNED_POSITIONS, records.LearnedPositions(
        form.code, packed.ctypes.data, 2, form.blocks(columns), out.address, out.stride, scratch.address,
        scratch.stride)))
    out.check()
    scratch.check()
    assert np.array_equal(out.view(np.float32), x + unpack(form, packed)[positions + 2])
