"""Messages over a pipe arrive as they were, or not at all."""

import os
import threading

import numpy as np
import pytest

from edgert.pipes import receive, send

NUMBERS = np.random.default_rng(0).standard_normal((3, 100_000), np.float32)
"""More than a pipe holds."""


def sent(*messages: tuple[object, np.ndarray | None]) -> int:
    """The end of a pipe at which these arrive, and then its end."""
    read, write = os.pipe()

    def work() -> None:
        for message, numbers in messages:
            send(write, message, numbers)
        os.close(write)

    threading.Thread(target=work).start()
    return read


def test_they_arrive_as_they_were() -> None:
    read = sent(({"texts": ["a", "ä"]}, None), ({}, NUMBERS), ({"n": 1}, NUMBERS[:, ::2].astype(np.float64)),
                ({}, np.empty((0, 4), np.float32)))
    assert receive(read)[0] == {"texts": ["a", "ä"]}
    assert np.array_equal(receive(read)[1], NUMBERS.reshape(-1))
    message, numbers = receive(read)
    assert message == {"n": 1} and numbers.dtype == np.float32 and np.array_equal(numbers, NUMBERS[:, ::2].reshape(-1))
    assert receive(read)[1].shape == (0,)
    with pytest.raises(EOFError):
        receive(read)
    os.close(read)


@pytest.mark.parametrize("length", [0, 2, 8, 9, 16, 20])
def test_an_end_amid_a_message(length: int) -> None:
    read, write = os.pipe()
    whole = (1).to_bytes(8, "little") + b"\x80" + (20).to_bytes(8, "little") + bytes(20)
    os.write(write, whole[:length])
    os.close(write)
    with pytest.raises(EOFError):
        receive(read)
    os.close(read)
