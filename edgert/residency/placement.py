"""Which weights stay in memory: the memory plan decides it, loading and streaming follow it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

_LOAD_CHUNK, _LOAD_READERS = 1 << 20, 4
"""Used if nothing is streamed: then the disk is not measured."""


@dataclass(frozen=True)
class Placement:
    """Which weights stay in memory, and how the others are read.

    pinned: of all that can be streamed, in the order of use, by name (header.UnitLayout): how many of its units, the
    first ones, stay in memory. embedding: the same for an embedding that is not also the output head; its other rows
    are read one by one. chunk_bytes: bytes to read at once. readers: number of threads that read. slots, slot_bytes:
    number and size of the buffers for what is read. window: where neurons are read only when they are needed, for how
    many of their groups (window.py), or experts (experts.py), of each size, in bytes, there is room; then none of them
    is pinned.
    """

    pinned: dict[str, int]
    embedding: int = 0
    chunk_bytes: int = _LOAD_CHUNK
    readers: int = _LOAD_READERS
    slots: int = 0
    slot_bytes: int = 0
    window: Mapping[int, int] = field(default_factory=dict)
