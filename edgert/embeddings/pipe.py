"""Messages over a pipe: a JSON object, and behind it an array of float32. Each has its length before it."""

import json
import os
from typing import Any

import numpy as np

_LENGTH = 8


def send(descriptor: int, message: dict[str, Any], vectors: np.ndarray | None = None) -> None:
    """Write a message. Raises OSError."""
    for data in (json.dumps(message).encode(), b"" if vectors is None else vectors.astype("<f4").tobytes()):
        rest = memoryview(len(data).to_bytes(_LENGTH, "little") + data)
        while rest:
            rest = rest[os.write(descriptor, rest):]


def receive(descriptor: int) -> tuple[dict[str, Any], np.ndarray]:
    """The next message, and its array in one dimension. Raises EOFError where there is none, or not all of it."""
    message = json.loads(_part(descriptor))
    return message, np.frombuffer(_part(descriptor), "<f4")


def _part(descriptor: int) -> bytes:
    return _read(descriptor, int.from_bytes(_read(descriptor, _LENGTH), "little"))


def _read(descriptor: int, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = os.read(descriptor, count - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)
