"""The header of a GGUF file, read within limits.

`gguf.GGUFReader` trusts every count and length in the file, and needs 10 s for a vocabulary of 150,000; this walk reads
the same in a fraction of a second, and refuses a file that is damaged or made to harm. Format: ggml's docs/gguf.md.
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from edgert.errors import SourceError

MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_ELEMENTS = 1 << 22
"""Array elements in all arrays together; the largest real vocabularies need a third of it."""
MAX_STRING = 1 << 24
MAX_TEXT = 1 << 28
"""Bytes in all strings together."""
MAX_NAME = 1 << 16
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16

_VERSIONS = (2, 3)
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor stands in the file."""

    name: str
    shape: tuple[int, ...]
    """Outermost dimension first: (rows, columns)."""
    type: GGMLQuantizationType
    offset: int
    """Of its first byte, in the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Header:
    """Everything in a GGUF file but the tensors' bytes."""

    metadata: dict[str, Any]
    """Plain Python values (str, int, float, bool, and lists of those) by key."""
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> Header:
    """Reads and checks the header. Time and memory are bounded by the limits above. Raises SourceError."""
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise SourceError(f"{path}: is not a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Walk(path, data).header()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error


class _Walk:
    """A position in the file that moves forward, and never past the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.end = path, data, len(data)
        self.position = 4
        self.elements = self.text = 0

    def fail(self, what: str, offset: int | None = None) -> NoReturn:
        where = self.position if offset is None else offset
        raise SourceError(f"{self.path}: damaged GGUF header: {what} (at byte {where})")

    def take(self, size: int, what: str) -> int:
        """Moves on by `size` bytes; their first is at the position returned."""
        start = self.position
        if size > self.end - start:
            self.fail(f"{what} goes past the end of the file")
        self.position = start + size
        return start

    def number(self, code: str, what: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize("<" + code), what))[0]

    def string(self, limit: int, what: str) -> str:
        start = self.position
        length = self.number("Q", what)
        if length > limit:
            self.fail(f"{what} is {length} bytes long, more than {limit}", start)
        first = self.take(length, what)
        self.text += length
        if self.text > MAX_TEXT:
            self.fail(f"more than {MAX_TEXT} bytes of text", start)
        try:
            return self.data[first:first + length].decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8", start)

    def header(self) -> Header:
        version = self.number("I", "the version")
        if version & 0xFFFF == 0:
            raise SourceError(f"{self.path}: is a big-endian GGUF file, made for another kind of machine: "
                              "use the usual little-endian file of this model")
        if version not in _VERSIONS:
            raise SourceError(f"{self.path}: is GGUF version {version}; edgert reads versions 2 and 3")
        tensor_count = self.count(MAX_TENSORS, "tensors")
        key_count = self.count(MAX_KEYS, "keys")
        metadata = self.by_name(key_count, self.key_and_value)
        infos = self.by_name(tensor_count, self.tensor_info)
        return Header(metadata, self.placed(infos, self.alignment(metadata)))

    def count(self, limit: int, what: str) -> int:
        start = self.position
        count: int = self.number("Q", f"the number of {what}")
        if count > limit:
            self.fail(f"{count} {what}, more than {limit}", start)
        return count

    def by_name(self, count: int, read: Callable[[], tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            start = self.position
            name, value = read()
            if name in found:
                self.fail(f"{name!r} is there twice", start)
            found[name] = value
        return found

    def key_and_value(self) -> tuple[str, Any]:
        key = self.string(MAX_NAME, "a key")
        kind = self.number("I", f"the type of {key!r}")
        return key, self.array(key) if kind == _ARRAY else self.scalar(kind, key)

    def scalar(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string(MAX_STRING, f"the value of {key!r}")
        if kind not in _SCALARS:
            self.fail(f"{key!r} is of unknown type {kind}")
        return self.number(_SCALARS[kind], f"the value of {key!r}")

    def array(self, key: str) -> list[Any]:
        start = self.position
        kind = self.number("I", f"the type of {key!r}")
        length = self.number("Q", f"the length of {key!r}")
        self.elements += length
        if self.elements > MAX_ELEMENTS:
            self.fail(f"the array {key!r} of {length} elements makes more than {MAX_ELEMENTS} array elements", start)
        if kind == _ARRAY:
            self.fail(f"{key!r} is an array of arrays, which edgert does not read", start)
        if kind == _STRING:
            what = f"an element of {key!r}"
            return [self.string(MAX_STRING, what) for _ in range(length)]
        if kind not in _SCALARS:
            self.fail(f"{key!r} is an array of unknown type {kind}", start)
        layout = f"<{length}{_SCALARS[kind]}"
        return list(struct.unpack_from(layout, self.data, self.take(struct.calcsize(layout), f"the array {key!r}")))

    def tensor_info(self) -> tuple[str, TensorInfo]:
        start = self.position
        name = self.string(MAX_NAME, "a tensor's name")
        dimensions = self.number("I", f"the dimensions of {name!r}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self.fail(f"tensor {name!r} has {dimensions} dimensions", start)
        shape = tuple(self.number("Q", f"the shape of {name!r}") for _ in range(dimensions))[::-1]
        kind = self.number("I", f"the type of {name!r}")
        offset = self.number("Q", f"the offset of {name!r}")
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (KeyError, ValueError):
            self.fail(f"tensor {name!r} is of unknown type {kind}", start)
        size = block_bytes
        for extent in (*shape[:-1], shape[-1] // block):
            size *= extent
        if shape[-1] % block or size == 0:
            self.fail(f"tensor {name!r} has the impossible shape {list(shape)}", start)
        return name, TensorInfo(name, shape, GGMLQuantizationType(kind), offset, size)

    def alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            self.fail(f"general.alignment is {alignment!r}, which is not a power of two up to {MAX_ALIGNMENT}")
        return alignment

    def placed(self, infos: dict[str, TensorInfo], alignment: int) -> dict[str, TensorInfo]:
        """The tensors with their offsets in the file, which must be aligned, inside it and apart from each other."""
        base = -(-self.position // alignment) * alignment
        tensors = {}
        for info in infos.values():
            if info.offset % alignment:
                self.fail(f"tensor {info.name!r} starts at an offset that is not a multiple of {alignment}", base)
            start = base + info.offset
            if start + info.size > self.end:
                raise SourceError(f"{self.path}: tensor {info.name!r} ends at byte {start + info.size}, the file at "
                                  f"{self.end}: it is cut off or damaged, fetch it again")
            tensors[info.name] = TensorInfo(info.name, info.shape, info.type, start, info.size)
        end, before = base, ""
        for info in sorted(tensors.values(), key=lambda info: info.offset):
            if info.offset < end:
                self.fail(f"tensor {info.name!r} overlaps {before!r}", info.offset)
            end, before = info.offset + info.size, info.name
        return tensors
