"""An ONNX file without its weights: what the onnx package parses, and where in which file each tensor's values stand.

A weight may stand in the ONNX file itself. So the file is gone through first as what it is, a protocol buffer, and what
is large of its tensors is left out and described as *external data*, as ONNX has it for values in files beside.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgert.errors import SourceError

from .source_file import SourceFile

BITS = {"FLOAT": 32, "FLOAT16": 16, "BFLOAT16": 16, "UINT8": 8, "INT8": 8, "UINT4": 4, "INT4": 4}
"""Of an element, of the types that weights, scales and zero points have."""

_INSIDE = {"model": {7: "graph"}, "graph": {1: "node", 5: "tensor"}, "node": {5: "attribute"},
           "attribute": {5: "tensor", 6: "graph"}}
"""Messages of onnx.proto3 in which there are tensors, by the number of the field that they are in."""
_UNUSED = {"graph": {13}}
"""Fields that are large and say nothing here: the shapes of activations."""
_FLOAT_DATA, _RAW_DATA = 4, 9
_SMALL = 4096
"""Bytes of a message that is taken as it is."""
_DEEPEST = 32
_MAX_LEFT = 256 << 20


@dataclass(frozen=True)
class Stored:
    """A tensor's values where they stand.

    type: an element's, one of BITS. shape: as in the ONNX file. file: None where `values` are in the ONNX file's graph,
    as bytes. offset: in bytes. packed in 4 bits, an even element is in the lower half of a byte.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    file: SourceFile | None
    offset: int = 0
    values: bytes = b""

    @property
    def size(self) -> int:
        """In bytes."""
        return -(-math.prod(self.shape) * BITS[self.type] // 8)

    def raw(self, offset: int, size: int) -> np.ndarray:
        """`size` bytes from `offset` on, uint8. Raises SourceError."""
        if self.file is None:
            return np.frombuffer(self.values, np.uint8, size, offset)
        return self.file.read(self.offset + offset, size)

    def floats(self, offset: int, count: int) -> np.ndarray:
        """`count` elements of a float type, from the element `offset` on, as float32. Raises SourceError."""
        item = BITS[self.type] // 8
        values = self.raw(offset * item, count * item)
        if self.type == "FLOAT":
            return values.view("<f4")
        if self.type == "FLOAT16":
            return values.view("<f2").astype(np.float32)
        return (values.view("<u2").astype(np.uint32) << 16).view(np.float32)


def read_model(path: Path) -> Any:
    """The onnx package's ModelProto of a file, with what is large of its tensors as external data.

    Raises SourceError where the package is missing, or the file is damaged or no ONNX model.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise SourceError(f"{path}: reading ONNX files takes the onnx package: pip install 'edgert[onnx]'") from error
    damaged = SourceError(f"{path}: is not a whole ONNX model: fetch it again")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            left = _Scan(file, path.name, _MAX_LEFT).message("model", size, 0)
        model = onnx.ModelProto.FromString(left)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (DecodeError, EOFError) as error:
        raise damaged from error
    except OverflowError as error:
        raise SourceError(f"{path}: has a graph of more than {_MAX_LEFT >> 20} MiB beside its weights, "
                          "which no real model has") from error
    if not model.graph.node or not model.opset_import:
        raise damaged
    return model


class _Scan:
    """Copies a protocol buffer without large tensor values. Raises EOFError where it is damaged, OverflowError where
    more than `most` bytes are left of it."""

    def __init__(self, file: BinaryIO, name: str, most: int) -> None:
        self._file, self._name, self._most = file, name, most

    def message(self, kind: str, end: int, depth: int) -> bytes:
        """What is left of a message from here to `end`."""
        if depth > _DEEPEST:
            raise EOFError
        left = bytearray()
        while self._file.tell() < end:
            key = self._varint()
            number, wire = key >> 3, key & 7
            if wire == 0:
                left += _varint(key) + _varint(self._varint())
            elif wire in (1, 5):
                left += _varint(key) + self._bytes(8 if wire == 1 else 4)
            elif wire == 2:
                left += self._field(kind, number, self._varint(), end, depth)
            else:
                raise EOFError
            if len(left) > self._most:
                raise OverflowError
        if self._file.tell() != end:
            raise EOFError
        return bytes(left)

    def _field(self, kind: str, number: int, length: int, end: int, depth: int) -> bytes:
        """What is left of a field with a length, whose number and length have been read."""
        start = self._file.tell()
        if start + length > end:
            raise EOFError
        if number in _UNUSED.get(kind, ()):
            self._file.seek(start + length)
            return b""
        if kind == "tensor" and number in (_FLOAT_DATA, _RAW_DATA) and length > _SMALL:
            self._file.seek(start + length)
            return _external(self._name, start, length)
        inner = _INSIDE.get(kind, {}).get(number)
        if inner is None or length <= _SMALL:
            if length > self._most:
                raise OverflowError
            content = self._bytes(length)
        else:
            content = self.message(inner, start + length, depth + 1)
        return _delimited(number, content)

    def _bytes(self, count: int) -> bytes:
        content = self._file.read(count)
        if len(content) != count:
            raise EOFError
        return content

    def _varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._bytes(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise EOFError


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _delimited(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _external(location: str, offset: int, length: int) -> bytes:
    """The fields of a tensor whose values are in a file: data_location, and external_data with key and value."""
    entries = {"location": location, "offset": str(offset), "length": str(length)}
    return _varint(14 << 3) + _varint(1) + b"".join(
        _delimited(13, _delimited(1, key.encode()) + _delimited(2, value.encode())) for key, value in entries.items())


def stored(tensor: Any, path: Path, files: dict[str, SourceFile]) -> Stored:
    """Where a TensorProto of the ONNX file at `path` has its values. The file that they are in is added to `files`.

    Raises SourceError where that is not there, or cannot be, or the type is not one of BITS.
    """
    import onnx

    kind, shape = onnx.TensorProto.DataType.Name(tensor.data_type), tuple(tensor.dims)
    if kind not in BITS:
        raise SourceError(f"{path}: tensor {tensor.name} is of type {kind}, which edgert does not read; "
                          f"it reads {', '.join(BITS)}")
    if any(size < 0 for size in shape):
        raise SourceError(f"{path}: tensor {tensor.name} has the impossible shape {list(shape)}")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        return _beside(Stored(tensor.name, kind, shape, None), entries, path, files)
    values = tensor.raw_data
    if not values:
        try:
            values = onnx.numpy_helper.to_array(tensor).tobytes() if BITS[kind] > 4 else b""
        except ValueError:
            values = b""
    found = Stored(tensor.name, kind, shape, None, values=values)
    if len(values) != found.size:
        raise _wrong_size(path, found, len(values))
    return found


def _beside(tensor: Stored, entries: Mapping[str, str], path: Path, files: dict[str, SourceFile]) -> Stored:
    """A tensor that is in a file, as its external data says."""
    location = entries.get("location", "")
    if not isinstance(location, str) or not location or location in (".", "..") or any(c in location for c in "/\\:\0"):
        raise SourceError(f"{path}: tensor {tensor.name} is said to be in {location!r}, which is not the name of a "
                          "file in this folder")
    if location not in files:
        if not (path.parent / location).is_file():
            raise SourceError(f"{path.parent / location}: there is no such file, and {path.name} has its weights in "
                              "it: fetch it too, into the same folder")
        files[location] = SourceFile(path.parent / location)
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or tensor.size)
    except ValueError:
        offset = length = -1
    if length != tensor.size:
        raise _wrong_size(path, tensor, length)
    if offset < 0 or offset + length > files[location].size:
        raise SourceError(f"{files[location].path}: is shorter than {path.name} says: fetch it again")
    return Stored(tensor.name, tensor.type, tensor.shape, files[location], offset)


def _wrong_size(path: Path, tensor: Stored, size: int) -> SourceError:
    return SourceError(f"{path}: tensor {tensor.name} has {size} bytes where its shape {list(tensor.shape)} takes "
                       f"{tensor.size}: the file is damaged")
