"""What a process and its child tell each other over pipes: messages, each with an array of float32 behind it.

A message is MessagePack. It and the array each have their length before them: 8 bytes, little-endian.
"""

import os
from typing import Any

import msgspec
import numpy as np

_LENGTH = 8


def send(descriptor: int, message: Any, numbers: np.ndarray | None = None) -> None:
    """Write a message: what msgspec encodes. Raises OSError."""
    array = b"" if numbers is None else np.ascontiguousarray(numbers, "<f4").reshape(-1).view(np.uint8).data
    for data in (msgspec.msgpack.encode(message), array):
        for part in (len(data).to_bytes(_LENGTH, "little"), data):
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(descriptor, rest):]


def receive(descriptor: int, kind: Any = dict) -> tuple[Any, np.ndarray]:
    """The next message, of this type, and its array in one dimension. Raises EOFError where there is none, or not all
    of it."""
    message = msgspec.msgpack.decode(_part(descriptor), type=kind)
    return message, np.frombuffer(_part(descriptor), "<f4")


def _part(descriptor: int) -> bytearray:
    return _read(descriptor, int.from_bytes(_read(descriptor, _LENGTH), "little"))


def _read(descriptor: int, count: int) -> bytearray:
    data = bytearray(count)
    rest = memoryview(data)
    while rest:
        got = os.readv(descriptor, [rest])
        if not got:
            raise EOFError
        rest = rest[got:]
    return data
