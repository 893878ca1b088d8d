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

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


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
            self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
        try:
            self._claim()
        except BaseException:
            os.close(self._file)
            raise
        try:
            with self._refusals("made room for"):
                os.ftruncate(self._file, 0)
                self._reserve(size)
        except BaseException:
            self.__exit__()
            raise

    def _claim(self) -> None:
        """Make sure that no other conversion writes this file, or has just renamed it. Locks of the dead are gone."""
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(self._file), self._part.stat())
        except OSError as error:
            ours = not isinstance(error, BlockingIOError | FileNotFoundError)  # some file systems have no locks
        if not ours:
            raise BundleError(f"{self.path}: another conversion is writing it; wait for that to end")

    def _reserve(self, size: int) -> None:
        """Take the disk space now: a full disk is better known before an hour of work than after."""
        try:
            os.posix_fallocate(self._file, 0, size)
        except AttributeError:
            os.ftruncate(self._file, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            os.ftruncate(self._file, size)

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
        self._write_at(place.offset + self._written[section], view)
        self._digests[section].update(view)
        self._written[section] += len(view)

    def _write_at(self, offset: int, view: memoryview) -> None:
        with self._refusals("written"):
            done = 0
            while done < len(view):
                done += os.pwrite(self._file, view[done:done + (1 << 30)], offset + done)

    def commit(self) -> None:
        """Write the header, sync, rename. Every section must be complete."""
        for name, section in self._header.sections.items():
            assert self._written[name] == section.length, name
            section.checksum = self._digests[name].hexdigest()
        data = self._header.to_json()
        first = min(s.offset for s in self._header.sections.values())
        assert len(data) <= min(MAX_HEADER_BYTES, first - PREFIX_BYTES)
        prefix = MAGIC + struct.pack("<IIQQ", VERSION, 0, len(data), xxhash.xxh3_64_intdigest(data))
        self._write_at(PREFIX_BYTES, memoryview(data))
        with self._refusals("written"):
            os.fsync(self._file)
        self._write_at(0, memoryview(prefix))
        with self._refusals("written"):
            os.fsync(self._file)
            self._part.replace(self.path)
        self._committed = True
        os.close(self._file)
        with contextlib.suppress(OSError):  # the bundle has its name; some file systems do not sync folders
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def __enter__(self) -> "BundleWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._committed and self._file >= 0:
            with contextlib.suppress(OSError):
                self._part.unlink()
            os.close(self._file)
            self._file = -1
