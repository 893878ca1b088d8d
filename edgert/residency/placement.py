"""Which weights stay in memory: what the memory plan decides, and what loading goes by."""

from dataclasses import dataclass

_LOAD_CHUNK, _LOAD_READERS = 1 << 20, 4
"""Where nothing is streamed, the disk is not measured."""


@dataclass(frozen=True)
class Placement:
    """Which weights stay in memory, and how the others are read.

    pinned: for every section that can be streamed, in the order of use, how many of its units stay: the first ones.
    embedding: how many units of an embedding that is not the output head stay; the other rows are read one by one.
    chunk_bytes: how much is read at once. slots: room for so many reads, of `slot_bytes` each.
    """

    pinned: dict[str, int]
    embedding: int = 0
    chunk_bytes: int = _LOAD_CHUNK
    readers: int = _LOAD_READERS
    slots: int = 0
    slot_bytes: int = 0
