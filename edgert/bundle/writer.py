"""Writing a bundle: section by section into a file beside its final place, renamed when it is whole and on the disk."""

import contextlib
import errno
import os
import struct
from pathlib import Path
from typing import Any

import xxhash

from edgert.errors import BundleError

from .header import MAGIC, MAX_HEADER_BYTES, PREFIX_BYTES, VERSION, Header


class BundleWriter:
    """Writes the sections of `header`, in the order of their offsets, then the header, then gives the file its name.

    Until `commit` the file is called PATH.part and begins with zeros, so nothing takes it for a bundle. Used as a
    context manager it removes that file when the block ends without a commit. Raises BundleError with what the
    operating system refused.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header) -> None:
        self.path = Path(path)
        self._part = self.path.with_name(self.path.name + ".part")
        self._header = header
        self._digests: dict[str, Any] = {name: xxhash.xxh3_64() for name in header.sections}
        self._written = dict.fromkeys(header.sections, 0)
        self._committed = False
        size = max(s.offset + s.length for s in header.sections.values())
        with self._refusals("created"):
            self._file = self._part.open("wb", buffering=0)  # noqa: SIM115 (closed by commit or __exit__)
        try:
            with self._refusals("made room for"):
                self._reserve(size)
        except BaseException:
            self.__exit__()
            raise

    def _reserve(self, size: int) -> None:
        """Take the disk space now: a full disk is better known before an hour of work than after."""
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)
        except AttributeError:
            self._file.truncate(size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            self._file.truncate(size)

    @contextlib.contextmanager
    def _refusals(self, action: str) -> Any:
        try:
            yield
        except OSError as error:
            why = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error)).lower()
            raise BundleError(f"{self.path}: cannot be {action}: {why}; "
                              "choose another place or free some space") from None

    def write(self, section: str, data: Any) -> None:
        """Append bytes (anything with the buffer protocol, contiguous) to a section."""
        view = memoryview(data).cast("B")
        place = self._header.sections[section]
        assert self._written[section] + len(view) <= place.length, section
        with self._refusals("written"):
            done = 0
            while done < len(view):
                at = place.offset + self._written[section] + done
                done += os.pwrite(self._file.fileno(), view[done:done + (1 << 30)], at)
        self._digests[section].update(view)
        self._written[section] += len(view)

    def commit(self) -> None:
        """Write the header, sync, rename. Every section must be complete."""
        for name, section in self._header.sections.items():
            assert self._written[name] == section.length, name
            section.checksum = self._digests[name].hexdigest()
        data = self._header.to_json()
        first = min(s.offset for s in self._header.sections.values())
        assert len(data) <= min(MAX_HEADER_BYTES, first - PREFIX_BYTES)
        prefix = MAGIC + struct.pack("<IIQQ", VERSION, 0, len(data), xxhash.xxh3_64_intdigest(data))
        with self._refusals("written"):
            os.pwrite(self._file.fileno(), data, PREFIX_BYTES)
            os.fsync(self._file.fileno())
            os.pwrite(self._file.fileno(), prefix, 0)
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self.path)
            self._committed = True
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def __enter__(self) -> "BundleWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._committed:
            self._file.close()
            with contextlib.suppress(OSError):
                self._part.unlink()
