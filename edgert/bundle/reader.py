"""Reading a bundle: the header at once, sections on demand, every byte checked before it is used."""

import os
import struct
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from edgert.errors import BundleError

from .decoding import header_of
from .header import (
    EMBEDDING,
    GROUP_CHECKSUMS,
    HEAD,
    MAGIC,
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    VERSION,
    Header,
    LeftOut,
    UnitLayout,
)

_CHUNK = 4 << 20


def damaged(path: Path, what: str, offset: int) -> BundleError:
    """What to raise where bytes do not match their checksum."""
    return BundleError(f"{path}: {what} at offset {offset} does not match its checksum; "
                       "the file is damaged, convert the model again")


@dataclass(frozen=True)
class Units:
    """Units that are read and checked one by one: neuron groups, their details, or slabs of a matrix.

    name: of their section, or of the matrix (header.UnitLayout). offset, length: where they are in the file at `path`.
    Every unit but the last is `unit_bytes` long. checksums: xxh3_64 of each.
    """

    path: Path
    name: str
    offset: int
    length: int
    unit_bytes: int
    checksums: "array[int]"

    @property
    def count(self) -> int:
        return len(self.checksums)

    def start(self, index: int) -> int:
        """Where a unit starts in the file, or where the last one ends."""
        return self.offset + min(index * self.unit_bytes, self.length)

    def check(self, index: int, data: bytes | memoryview) -> None:
        """Check a unit's bytes. Raises BundleError."""
        if xxhash.xxh3_64_intdigest(data) != self.checksums[index]:
            raise self._damaged(index)

    def check_all(self, first: int, places: Iterable[slice], data: memoryview) -> None:
        """Check units from `first` on, each at its place in `data`: a pass over a model checks thousands. Raises
        BundleError for the first that is damaged."""
        hashed = xxhash.xxh3_64_intdigest
        found = array("Q", [hashed(data[place]) for place in places])
        expected = self.checksums[first:first + len(found)]
        if found != expected:
            raise self._damaged(first + next(i for i, digest in enumerate(found) if digest != expected[i]))

    def check_each(self, numbers: Iterable[int], pieces: Iterable[memoryview]) -> None:
        """Check units of these numbers. Raises BundleError for the first that is damaged."""
        hashed, checksums = xxhash.xxh3_64_intdigest, self.checksums
        for number, piece in zip(numbers, pieces, strict=True):
            if hashed(piece) != checksums[number]:
                raise self._damaged(number)

    def _damaged(self, index: int) -> BundleError:
        return damaged(self.path, f"part {index} of {self.name!r}", self.start(index))


class Bundle:
    """An open bundle file.

    path: where it is. header: what it holds. longest_context: how many positions its model knows. digest: the header's
    checksum, in hexadecimal digits; it covers those of all that the bundle contains. Raises BundleError when opened,
    and when what is read is not what was written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise BundleError(f"{self.path}: cannot be opened: {(error.strerror or str(error)).lower()}") from None
        try:
            self.header = self._stored = self._read_header()
            self.longest_context = self.header.config.max_position_embeddings
        except BaseException:
            self._file.close()
            raise

    def load_for(self, context: int, left_out: LeftOut | None = None) -> None:
        """Have `header`, and with it `units`, be that of a model that is loaded for so many tokens
        (Config.for_context), and to leave this out."""
        self.header = replace(self._stored, config=self._stored.config.for_context(context)).leaving_out(left_out)
        self.__dict__.pop("units", None)

    def _read_header(self) -> Header:
        try:
            size = os.fstat(self._file.fileno()).st_size
            prefix = self._file.read(PREFIX_BYTES)
        except OSError as error:
            raise BundleError(f"{self.path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
        if prefix[:4] == b"GGUF":
            raise BundleError(f"{self.path}: is a GGUF file, not a bundle; make one with: "
                              f"edgert convert {self.path} {self.path.with_suffix('.edge').name}")
        if len(prefix) < PREFIX_BYTES or prefix[:8] != MAGIC:
            what = "is empty" if not prefix else "is not an edgert bundle, or its conversion was interrupted"
            raise BundleError(f"{self.path}: {what}; make one with: edgert convert SOURCE {self.path.name}")
        version, zero, length, digest = struct.unpack("<IIQQ", prefix[8:])
        if zero:
            raise BundleError(f"{self.path}: has {zero:#x} at offset 12, where zeros belong; "
                              "the file is damaged, convert the model again")
        if version != VERSION:
            raise BundleError(f"{self.path}: is a bundle of version {version}, this edgert reads version {VERSION}; "
                              f"{'update edgert or ' if version > VERSION else ''}convert the model again")
        if length > min(MAX_HEADER_BYTES, size - PREFIX_BYTES):
            raise BundleError(f"{self.path}: the header claims {length} bytes at offset {PREFIX_BYTES}, more than "
                              "there are or may be; the file is damaged, convert the model again")
        data = self.read_at(PREFIX_BYTES, length)
        if xxhash.xxh3_64_intdigest(data) != digest:
            raise BundleError(f"{self.path}: the header at offset {PREFIX_BYTES} does not match its checksum; "
                              "the file is damaged, convert the model again")
        self.digest = f"{digest:016x}"
        try:
            return header_of(data, size)
        except BundleError as error:
            raise BundleError(f"{self.path}: {error}") from None

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a writable buffer of bytes from a file offset. Raises BundleError on a read error or a short file."""
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._file.fileno(), [buffer[done:done + (1 << 30)]], offset + done)
            except OSError as error:
                raise BundleError(f"{self.path}: reading at offset {offset + done} failed: "
                                  f"{(error.strerror or str(error)).lower()}") from None
            if got == 0:
                raise BundleError(f"{self.path}: ends at offset {offset + done}, before what its header promises; "
                                  "the file is truncated, convert the model again")
            done += got

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes at a file offset. Raises BundleError as `read_into` does."""
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_section(self, name: str) -> bytes:
        """A whole section, checked. Raises BundleError."""
        section = self.header.sections[name]
        buffer = bytearray(section.length)
        self.load_section(name, memoryview(buffer))
        return bytes(buffer)

    def load_section(self, name: str, buffer: memoryview) -> None:
        """Fill a buffer of the section's length with it, and check it. Raises BundleError."""
        section = self.header.sections[name]
        digest = xxhash.xxh3_64()
        for start in range(0, section.length, _CHUNK):
            part = buffer[start:start + _CHUNK]
            self.read_into(section.offset + start, part)
            digest.update(part)
        if digest.hexdigest() != section.checksum:
            raise damaged(self.path, f"section {name!r}", section.offset)

    @cached_property
    def units(self) -> dict[str, Units]:
        """What is read and checked piece by piece, by section: every layer's neuron groups and their details, the slabs
        of the embedding and of the output head. Raises BundleError."""
        in_use = {section for n in self.header.neurons for section, _ in n.parts()} | {EMBEDDING, HEAD}
        return self._units(lambda name: name in in_use)

    def _units(self, wanted: Callable[[str], bool]) -> dict[str, Units]:
        checksums = np.frombuffer(self.read_section(GROUP_CHECKSUMS), dtype="<u8").astype(np.uint64, copy=False)
        found, at = {}, 0
        for layout in self._stored.unit_layouts():
            if wanted(layout.name):
                found[layout.name] = self.units_of(layout, array("Q", checksums[at:at + layout.count].tobytes()))
            at += layout.count
        return found

    def units_of(self, layout: UnitLayout, checksums: "array[int]") -> Units:
        """Units laid out like this, with the xxh3_64 of each."""
        return Units(self.path, layout.name, self.header.sections[layout.section].offset + layout.offset,
                     layout.length, layout.unit_bytes, checksums)

    def verify(self) -> list[str]:
        """Check every section and every unit; what is wrong, each with its offset, in one sentence each."""
        problems = []
        for name, section in self.header.sections.items():
            digest = xxhash.xxh3_64()
            try:
                for start in range(0, section.length, _CHUNK):
                    digest.update(self.read_at(section.offset + start, min(_CHUNK, section.length - start)))
            except BundleError as error:
                problems.append(str(error))
                continue
            if digest.hexdigest() != section.checksum:
                problems.append(str(damaged(self.path, f"section {name!r}", section.offset)))
        try:
            every = self._units(lambda name: True)
        except BundleError:
            return problems
        for units in every.values():
            for index in range(len(units.checksums)):
                try:
                    units.check(index, self.read_at(units.start(index), units.start(index + 1) - units.start(index)))
                except BundleError as error:
                    problems.append(str(error))
        return problems

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Bundle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
