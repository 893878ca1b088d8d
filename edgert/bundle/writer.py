"""Writing a bundle: section by section into a file beside its final place, renamed when it is whole and on the disk."""

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from edgert.errors import BundleError, SourceError

from .header import MAGIC, MAX_HEADER_BYTES, PREFIX_BYTES, VERSION, Header
from .journal import Entry, Journal

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_CHUNK = 4 << 20


class BundleWriter:
    """Writes the sections of `header`, each from its start to its end, then the header, then gives the file its name.

    A context manager. Within the block the file is called PATH.part and begins with zeros, so that nothing takes it for
    a bundle; where the block ends without a `commit` it is removed, unless `keep` has said how to go on, and it does
    not end because the source is at fault. What an interrupted conversion of the same `key` has kept under that name is
    gone on with from there (`kept`), what another left is removed, anything else is refused. The bundle gets owner and
    mode of a file that it replaces. Raises BundleError with what the operating system refused.

    key: what the bundle is made of and how, all that its bytes depend on.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header, key: str = "") -> None:
        self.path = Path(path)
        self._part = _part_of(self.path)
        self._journal = Journal(self._part, key)
        self._keeps = False
        self.kept: Entry | None = None
        """What an earlier conversion has told to `keep`, if this one goes on with it."""
        self.discarded = False
        """Whether an earlier one has kept something that this one cannot go on with."""
        self._header = header
        self._digests: dict[str, Any] = {name: xxhash.xxh3_64() for name in header.sections}
        self._written = dict.fromkeys(header.sections, 0)
        self._file: FileIO | None = None
        self._replaced: os.stat_result | None = None
        self._committed = False

    def __enter__(self) -> "BundleWriter":
        # An interruption may come anywhere in here, and then nobody calls __exit__.
        try:
            with self._refusals("created"):
                self._create()
            with self._refusals("made room for"):
                self._reserve(max(s.offset + s.length for s in self._header.sections.values()))
            return self
        except BaseException:
            self._leave()
            raise

    @property
    def _handle(self) -> int:
        assert self._file is not None
        return self._file.fileno()

    def _create(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._replaced = self.path.stat()
        with contextlib.suppress(FileNotFoundError):
            self._go_on()
            if self.kept is not None:
                return
            self.discarded = self._journal.path.exists()
            self._remove_leftover()
        self._journal.remove()
        try:
            self._file = self._part.open("x+b", buffering=0)
        except FileExistsError:
            raise self._in_use() from None
        self._claim(self._file)
        self._take_after_replaced()  # now: what is private must not be readable before it is whole, either

    def _take_after_replaced(self) -> None:
        """Give the file owner and mode of the one that it is going to replace, as far as that is permitted."""
        if self._replaced is not None:
            with contextlib.suppress(OSError):  # only root may give files away
                os.chown(self._part, self._replaced.st_uid, self._replaced.st_gid)
            with contextlib.suppress(OSError):
                self._part.chmod(stat.S_IMODE(self._replaced.st_mode))

    def _go_on(self) -> None:
        """Open what was kept, if it is what it was. Raises FileNotFoundError where there is nothing."""
        if not stat.S_ISREG(self._part.lstat().st_mode) or (entry := self._journal.read()) is None:
            return
        file = self._part.open("r+b", buffering=0)
        try:
            self._claim(file)
            self._keeps = True  # if we are interrupted now
            self._keeps = self._is_written(file.fileno(), entry)
            if self._keeps:
                os.pwrite(file.fileno(), bytes(PREFIX_BYTES), 0)  # it was perhaps whole, but for its name
                self._file, self._written, self.kept = file, dict(entry.written), entry
                self._take_after_replaced()
                return
        except BaseException:
            file.close()
            raise
        file.close()

    def _is_written(self, handle: int, entry: Entry) -> bool:
        """Whether all is in the file that was written before. Sets digests to what they were then."""
        if set(entry.written) != set(self._header.sections):
            return False
        for name, length in entry.written.items():
            place, digest, done = self._header.sections[name], self._digests[name], 0
            while done < min(length, place.length):
                part = os.pread(handle, min(_CHUNK, length - done), place.offset + done)
                if not part:
                    break
                digest.update(part)
                done += len(part)
            if digest.hexdigest() != entry.digests.get(name) or done != length:
                self._digests = {name: xxhash.xxh3_64() for name in self._header.sections}
                return False
        return True

    def _remove_leftover(self) -> None:
        """Remove what a conversion left that was killed. Raises FileNotFoundError where there is nothing."""
        left = False
        if stat.S_ISREG(self._part.lstat().st_mode):
            with self._part.open("rb", buffering=0) as file:
                self._claim(file)
                start = file.read(PREFIX_BYTES) or b""
                left = start.startswith(MAGIC) or not start.strip(b"\0")
                if left:
                    self._part.unlink()
        if not left:
            raise BundleError(f"{self._part}: is in the way, and is not what an interrupted conversion leaves; "
                              "move it, or give the bundle another name")

    def _claim(self, file: FileIO) -> None:
        """Make sure that no other conversion writes this file, or has just renamed it. Locks of the dead are gone."""
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(file.fileno()), self._part.lstat())
        except OSError as error:
            ours = not isinstance(error, BlockingIOError | FileNotFoundError)  # some file systems have no locks
        if not ours:
            raise self._in_use()

    def _in_use(self) -> BundleError:
        return BundleError(f"{self.path}: another conversion is writing it; wait for that to end")

    def _reserve(self, size: int) -> None:
        """Take the disk space now: a full disk is better known before an hour of work than after."""
        try:
            os.posix_fallocate(self._handle, 0, size)
        except AttributeError:
            os.ftruncate(self._handle, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            os.ftruncate(self._handle, size)

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
                done += os.pwrite(self._handle, view[done:done + (1 << 30)], offset + done)

    def keep(self, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Have what is written until now stay if the block ends early; state and arrays are what to go on with. Where
        there is no room for that nothing changes."""
        digests = {name: digest.hexdigest() for name, digest in self._digests.items()}
        with contextlib.suppress(OSError):
            os.fsync(self._handle)
            self._journal.write(Entry(dict(self._written), digests, state, arrays))
            self._keeps = True

    def commit(self) -> None:
        """Write the header, sync, rename. Every section must be complete."""
        for name, section in self._header.sections.items():
            assert self._written[name] == section.length, name
            section.checksum = self._digests[name].hexdigest()
        prefix, data = _first_bytes(self._header)
        self._write_at(PREFIX_BYTES, memoryview(data))
        with self._refusals("written"):
            os.fsync(self._handle)
        self._write_at(0, memoryview(prefix))
        with self._refusals("written"):
            os.fsync(self._handle)
            self._part.replace(self.path)
        self._committed = True
        self._journal.remove()
        with contextlib.suppress(OSError):  # the bundle has its name; some file systems do not sync folders
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if not self._committed:
            self._keeps &= not isinstance(error, SourceError)
            self._leave()
        if self._file is not None:
            self._file.close()

    def _leave(self) -> None:
        """Remove PATH.part, unless it is kept, or another's."""
        if self._keeps:
            return
        with contextlib.suppress(OSError, BundleError):
            if self._file is None:  # interrupted, perhaps when it had just been made
                if not self._journal.path.exists():
                    self._remove_leftover()
            elif os.path.samestat(os.fstat(self._handle), self._part.lstat()):
                self._part.unlink()
                self._journal.remove()


def is_begun(path: Path) -> bool:
    """Whether something is kept of a bundle that was to be written at `path`."""
    part = _part_of(path.resolve())
    return part.exists() and Journal(part, "").path.exists()


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def write_hollow(path: Path, header: Header, texts: Mapping[str, bytes]) -> None:
    """Write a bundle that has nothing in its sections but in those named: for planning, not for running. It takes
    hardly any room on the disk. Raises OSError."""
    for name, content in texts.items():
        header.sections[name].checksum = xxhash.xxh3_64_hexdigest(content)
    with path.open("wb") as file:
        file.write(b"".join(_first_bytes(header)))
        for name, content in texts.items():
            file.seek(header.sections[name].offset)
            file.write(content)
        file.truncate(max(section.offset + section.length for section in header.sections.values()))


def _first_bytes(header: Header) -> tuple[bytes, bytes]:
    """What a bundle begins with: the prefix, and the header."""
    data = header.to_json()
    first = min(section.offset for section in header.sections.values())
    assert len(data) <= min(MAX_HEADER_BYTES, first - PREFIX_BYTES)
    return MAGIC + struct.pack("<IIQQ", VERSION, 0, len(data), xxhash.xxh3_64_intdigest(data)), data
