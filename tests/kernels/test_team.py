import threading

import numpy as np
import pytest
import rig
from guarded import floats

from edgert.kernels import native, records
from edgert.kernels.records import RECORD, Code
from edgert.kernels.team import Program, Team


def chain(rows: np.ndarray, steps: int) -> tuple[Program, np.ndarray, list[object]]:
    """Norms, each of the result of the one before: one barrier missed and the result differs."""
    buffers = [floats(rows), floats(rows)]
    weight = floats(np.linspace(0.5, 1.5, rows.shape[1]))
    program = Program()
    for step in range(steps):
        source, out = buffers[step % 2], buffers[(step + 1) % 2]
        program.append(Code.NORM, records.Norm(
            source.address, source.stride, weight.address, rows.shape[1], rows.shape[1] // 32, rig.bits(1e-6),
            out.address, out.stride, 0, 0, 0, 0, 0))
    return program, buffers[steps % 2].view(np.float32), [buffers, weight]


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_operations_follow_one_another(target: str, threads: int) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    results = []
    for team in (rig.team(target), rig.team(target, threads)):
        program, out, _kept = chain(rows, 101)
        team.set(tokens=5)
        assert team.run(program.array)
        results.append(out.copy())
    assert np.array_equal(*results)
    assert np.isfinite(results[0]).all()


def test_many_short_runs(target: str) -> None:
    """Helpers wake and sleep again each time."""
    team = rig.team(target, 3)
    program, out, _kept = chain(np.ones((4, 32), np.float32), 1)
    team.set(tokens=4)
    for _ in range(300):
        assert team.run(program.array)
    assert np.isfinite(out).all()


def test_an_empty_program(target: str) -> None:
    assert rig.team(target, 2).run(Program().array)


def test_two_teams_at_once(target: str) -> None:
    rows = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    library = native.library(target)
    results: dict[int, np.ndarray] = {}
    errors: list[BaseException] = []

    def work(number: int) -> None:
        team = Team(library, 2)
        try:
            program, out, _kept = chain(rows, 51)
            team.set(tokens=4)
            for _ in range(10):
                assert team.run(program.array)
            results[number] = out.copy()
        except BaseException as error:
            errors.append(error)
        finally:
            team.close()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not errors and len(results) == 2
    assert np.array_equal(results[0], results[1])


def test_closing_ends_the_threads(target: str) -> None:
    before = threading.active_count()
    team = Team(native.library(target), 4)
    assert threading.active_count() == before + 3
    team.run(Program().array)
    team.close()
    assert threading.active_count() == before
    team.close()
    with pytest.raises(AssertionError):
        team.run(Program().array)


def test_a_program_is_an_array_of_records() -> None:
    program = Program()
    assert program.array.shape == (0, RECORD)
    first = program.append(Code.QUANTIZE, records.Quantize(1, 2, 3, 4, 5, 6, 7))
    second = program.append(Code.NORM, records.Norm(*range(13)))
    assert program.array.tolist() == [
        [Code.QUANTIZE, 1, 2, 3, 4, 5, 6, 7, *[0] * (RECORD - 8)], [Code.NORM, *range(13), *[0] * (RECORD - 14)]]
    assert program.array.dtype == np.int64
    program.amend(first, records.QUANTIZE.fine, -1)
    program.amend(second, records.NORM.x, 77)
    assert program.array.tolist() == [
        [Code.QUANTIZE, 1, 2, 3, 4, 5, -1, 7, *[0] * (RECORD - 8)],
        [Code.NORM, 77, *range(1, 13), *[0] * (RECORD - 14)]]


def test_every_record_fits_and_offsets_are_places() -> None:
    classes = [records.Embedding, records.Linear, records.Norm, records.Quantize, records.Rope, records.Attention,
               records.Up, records.Down, records.Neurons, records.Release]
    for record in classes:
        assert len(record._fields) < RECORD
        program, places = Program(), records.offsets(record)
        program.append(Code.NORM, record(*range(100, 100 + len(record._fields))))
        for number, name in enumerate(record._fields):
            assert program.array[0, getattr(places, name) // 8] == 100 + number
            assert getattr(places, name) == getattr(getattr(records, record.__name__.upper()), name)
    assert 8 * len(records.Token._fields) <= records.TOKEN_BYTES
    assert 8 * len(records.State._fields) <= records.WAITING
