"""Reading a bundle: the header at once, sections on demand, every byte checked before it is used."""

import os
import struct
from pathlib import Path

import numpy as np
import xxhash

from edgert.errors import BundleError

from .header import GROUP_CHECKSUMS, MAGIC, MAX_HEADER_BYTES, PREFIX_BYTES, VERSION, Header

_CHUNK = 4 << 20


class Bundle:
    """An open bundle file.

    path: where it is. header: what it holds. Raises BundleError when opened, and when what is read is not what was
    written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise BundleError(f"{self.path}: cannot be opened: {(error.strerror or str(error)).lower()}") from None
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise
        self._group_checksums: list[list[int]] | None = None

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
                              "convert the model again or update edgert")
        if length > min(MAX_HEADER_BYTES, size - PREFIX_BYTES):
            raise BundleError(f"{self.path}: the header claims {length} bytes at offset {PREFIX_BYTES}, more than "
                              "there are or may be; the file is damaged, convert the model again")
        data = self.read_at(PREFIX_BYTES, length)
        if xxhash.xxh3_64_intdigest(data) != digest:
            raise BundleError(f"{self.path}: the header at offset {PREFIX_BYTES} does not match its checksum; "
                              "the file is damaged, convert the model again")
        try:
            return Header.from_json(data, size)
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
            raise self._damaged(f"section {name!r}", section.offset)

    def load_groups(self, layer: int, first: int, count: int, buffer: memoryview) -> None:
        """Fill a buffer with `count` neuron groups of a layer and check each. Raises BundleError."""
        neurons = self.header.neurons[layer]
        start = self.header.sections[neurons.section].offset + first * neurons.group_bytes
        self.read_into(start, buffer)
        self.check_groups(layer, first, count, buffer)

    def check_groups(self, layer: int, first: int, count: int, buffer: memoryview) -> None:
        """Check `count` neuron groups of a layer that stand one after another in a buffer. Raises BundleError."""
        neurons = self.header.neurons[layer]
        size = neurons.group_bytes
        expected = self.group_checksums()[layer]
        for i in range(count):
            if xxhash.xxh3_64_intdigest(buffer[i * size:(i + 1) * size]) != expected[first + i]:
                offset = self.header.sections[neurons.section].offset + (first + i) * size
                raise self._damaged(f"group {first + i} of section {neurons.section!r}", offset)

    def group_checksums(self) -> list[list[int]]:
        """xxh3_64 of every neuron group, by layer and group."""
        if self._group_checksums is None:
            values = np.frombuffer(self.read_section(GROUP_CHECKSUMS), dtype="<u8")
            cuts = np.cumsum([n.groups for n in self.header.neurons])[:-1]
            self._group_checksums = [part.tolist() for part in np.split(values, cuts)]
        return self._group_checksums

    def _damaged(self, what: str, offset: int) -> BundleError:
        return BundleError(f"{self.path}: {what} at offset {offset} does not match its checksum; "
                           "the file is damaged, convert the model again")

    def verify(self) -> list[str]:
        """Check every section and every neuron group; what is wrong, each with its offset, in one sentence each."""
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
                problems.append(str(self._damaged(f"section {name!r}", section.offset)))
        try:
            self.group_checksums()
        except BundleError:
            return problems
        for layer, neurons in enumerate(self.header.neurons):
            for group in range(neurons.groups):
                buffer = bytearray(neurons.group_bytes)
                try:
                    self.load_groups(layer, group, 1, memoryview(buffer))
                except BundleError as error:
                    problems.append(str(error))
        return problems

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Bundle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
