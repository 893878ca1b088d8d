"""A session in a file: what a conversation has computed, so that it goes on later as if it had never been closed.

    offset 0       MAGIC, then uint32 version, uint32 0, uint64 length and uint64 xxh3_64 of the header
    offset 32      the header: JSON (`Saved`, and a checksum of every block and of `more`)
    then           from a multiple of 4096 on: blocks of the key-value cache (pool.py), one after another, each page by
                   page, those of layers with a window last; then `more`, what a policy of the cache knows
                   (Session.state)

All numbers are little-endian. A file is written beside its place, synced, and renamed: there is always a whole one, of
the last turn that was saved. Nothing in it is executed.
"""

import contextlib
import math
import os
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash

from edgert.bundle.header import LeftOut, NeuronLoss
from edgert.errors import SessionError
from edgert.kernels.pages import PAGE

from .low_blocks import low_block_bytes
from .session import Session
from .window_pages import windowed_block_bytes

MAGIC, VERSION = b"EDGESESS", 2
_PREFIX = struct.Struct("<8sIIQQ")
_ALIGNMENT = 4096
_MOST_HEADER = 64 << 20


class Saved(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The header of a session's file.

    bundle: checksum of the header of the bundle that it belongs to. context, policy: what the session had. tokens: ids
    of all that were computed. held, ahead: as in Session. blocks: xxh3_64 of each; the first `low` are low ones.
    windowed_bytes: how many of a block's bytes are of layers with a window, which are not there of the first `bare`
    blocks. threshold: of experts or neurons that were left out. places, importance: shapes of the arrays in `more`,
    int32 and float32. talk: what the program that saved it wants to know again.
    """

    bundle: str
    cache_type: str
    context: int
    policy: str
    tokens: list[int]
    held: int
    ahead: int
    unchanged: int
    block_bytes: int
    low_block_bytes: int
    blocks: list[int]
    low: int
    places: list[int]
    importance: list[int]
    more: int
    talk: dict[str, Any]
    windowed_bytes: int = 0
    bare: int = 0
    threshold: float = 0.0

    def start_of(self, block: int) -> int:
        """Where a block begins, from the first one's beginning on; for len(blocks) where `more` does."""
        return (self.low_block_bytes * min(block, self.low) + self.block_bytes * max(block - self.low, 0)
                - self.windowed_bytes * min(block, self.bare))


@dataclass(frozen=True)
class SessionFile:
    """A file that was opened: its header, and where its blocks begin."""

    path: Path
    saved: Saved
    start: int

    def check(self, bundle: str, session: Session, threshold: float = 0.0, losses: Sequence[LeftOut] = ()) -> None:
        """Raises SessionError where this session cannot go on with what was saved. threshold: of what is
        left out. losses: what can be, of this model."""
        saved = self.saved
        if saved.bundle != bundle:
            raise SessionError(f"{self.path}: belongs to another model, or to another conversion of this one; open "
                               "that, or begin a new session")
        if saved.threshold != threshold:
            raise SessionError(f"{self.path}: was computed {_with(saved.threshold, losses)}, and this model is "
                               f"loaded to compute {_with(threshold, losses)}; {_to_give(saved.threshold, losses)}, or "
                               "begin a new session")
        if session.config.for_context(saved.context) != session.config:
            raise SessionError(f"{self.path}: was computed with a context of {saved.context}, for which this model's "
                               f"positions are others than for one of {session.context}; open it with --context "
                               f"{saved.context}")
        if saved.cache_type != session.cache_type:
            raise SessionError(f"{self.path}: has a cache of type {saved.cache_type}, not {session.cache_type}; open "
                               f"it with --kv-type {saved.cache_type}")
        if saved.windowed_bytes != windowed_block_bytes(session.config, saved.cache_type):
            raise SessionError(f"{self.path}: was kept by an older edgert, in another order; begin a new session")
        if saved.bare and session.pool.windows is None:
            raise SessionError(f"{self.path}: has of layers with a window the latest positions alone; open it with "
                               f"--context {saved.context} --kv-policy {saved.policy}")
        exact = session.context - PAGE * session.most_low
        if saved.low > session.most_low or (session.most_low and saved.held - PAGE * saved.low > exact):
            raise SessionError(f"{self.path}: was kept with --kv-policy {saved.policy} and a cache of another size; "
                               f"open it with --kv-policy {saved.policy} --context {saved.context}, and the "
                               "--kv-memory that it had")
        if saved.held > session.context:
            raise SessionError(f"{self.path}: holds {saved.held} tokens, the context has room for {session.context}; "
                               f"open it with --context {max(saved.held, saved.context)}")

    def read_into(self, session: Session) -> None:
        """Give an empty session of the same kind what was saved. Raises SessionError; then the session is empty."""
        saved = self.saved
        try:
            with self.path.open("rb", buffering=0) as file:
                session.restore(saved.tokens, saved.held, saved.ahead, saved.unchanged,
                                self._blocks(file, session), self._more(file))
                _uncache(file.fileno())
        except BaseException as error:
            session.release_all()
            if isinstance(error, OSError):
                raise SessionError(f"{self.path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
            raise

    def _blocks(self, file: Any, session: Session) -> Any:
        """Read block after block into blocks of the session's pool."""
        file.seek(self.start)
        pool, needed = session.pool, session.blocks.first_needed(self.saved.held)
        passed = np.empty(pool.page_bytes, np.uint8)
        for number, checksum in enumerate(self.saved.blocks):
            block = pool.low.take() if number < self.saved.low else session.blocks.take(session.held)
            if number >= needed:
                pool.bring_windows(block, block)
            digest, whole = xxhash.xxh3_64(), True
            for page in pool.into(block, self._layers(session, number), passed):
                view, done = page.data, 0
                while done < len(view) and (count := file.readinto(view[done:])):
                    done += count
                whole &= done == len(view)
                digest.update(view)
            if not whole or digest.intdigest() != checksum:
                pool.give_back(block)
                raise self._damaged(f"block {number}", self.start + self.saved.start_of(number))
            yield block

    def _layers(self, session: Session, block: int) -> list[int]:
        """Whose pages are in the file of a block, in order."""
        return session.pool.in_order if block >= self.saved.bare else session.pool.whole.tolist()

    def _more(self, file: Any) -> tuple[np.ndarray, np.ndarray | None]:
        saved = self.saved
        start = self.start + saved.start_of(len(saved.blocks))
        file.seek(start)
        places, importance = (4 * int(np.prod(shape)) if shape else 0 for shape in (saved.places, saved.importance))
        data = file.read(places + importance)
        if len(data) != places + importance or xxhash.xxh3_64_intdigest(data) != saved.more:
            raise self._damaged("what its policy knows", start)
        return (np.frombuffer(data[:places], np.int32).reshape(saved.places),
                np.frombuffer(data[places:], np.float32).reshape(saved.importance) if importance else None)

    def _damaged(self, what: str, offset: int) -> SessionError:
        return SessionError(f"{self.path}: {what} at offset {offset} does not match its checksum; the file is damaged: "
                            "remove the session, and begin a new one")


def open_session(path: Path) -> SessionFile:
    """Open a session's file and check its header. Raises SessionError."""
    try:
        with path.open("rb") as file:
            prefix = file.read(_PREFIX.size)
            if len(prefix) < _PREFIX.size or not prefix.startswith(MAGIC):
                raise SessionError(f"{path}: is not a session of edgert")
            _, version, zero, length, digest = _PREFIX.unpack(prefix)
            if version != VERSION:
                raise SessionError(f"{path}: is a session of version {version}, this edgert reads version {VERSION}; "
                                   f"{'update edgert' if version > VERSION else 'begin a new one'}")
            header = file.read(length) if length <= _MOST_HEADER else b""
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise SessionError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    if zero or len(header) != length or xxhash.xxh3_64_intdigest(header) != digest:
        raise SessionError(f"{path}: the header at offset 0 does not match its checksum; the file is damaged: remove "
                           "the session, and begin a new one")
    try:
        saved = msgspec.json.decode(header, type=Saved)
    except msgspec.DecodeError as error:
        raise SessionError(f"{path}: the header is not that of a session ({error}); remove it, and begin a new "
                           "one") from None
    start = _aligned(_PREFIX.size + length)
    if size < start + saved.start_of(len(saved.blocks)):
        raise SessionError(f"{path}: ends at byte {size}, before all of its blocks; the file is damaged: remove the "
                           "session, and begin a new one")
    return SessionFile(path, saved, start)


def _with(threshold: float, losses: Sequence[LeftOut]) -> str:
    neurons = any(isinstance(point, NeuronLoss) for point in losses)
    if not threshold:
        return f"with all {'neurons' if neurons else 'experts'}"
    return (f"without neurons that are active with less than {100 * threshold:g} %" if neurons else
            f"without experts that weigh less than {100 * threshold:g} %")


def _to_give(threshold: float, losses: Sequence[LeftOut]) -> str:
    """What to load a model with so that it leaves out what is below a threshold, and no more: prices that differ do so
    by 1e-6 nats at least."""
    if not threshold:
        return "leave --max-loss away"
    for point in losses:
        if point.threshold == threshold:
            return f"give --max-loss {math.ceil(1e6 * point.loss) / 1e4:g}%"
    return "give the --max-loss that it had"


def save_session(path: Path, session: Session, bundle: str, policy: str, talk: dict[str, Any],
                 threshold: float = 0.0) -> None:
    """Write a session to its file, which is replaced as a whole or not at all. threshold: of what is left
    out. Raises SessionError."""
    blocks, places, importance = session.state()
    pool, bare = session.pool, 0 if session.pool.windows is None else session.blocks.first_needed(session.held)

    def contents(number: int) -> list[np.ndarray]:
        return pool.contents(blocks[number], pool.in_order if number >= bare else pool.whole.tolist())

    more = places.tobytes() + (b"" if importance is None else importance.tobytes())
    header = msgspec.json.encode(Saved(
        bundle, session.cache_type, session.context, policy, session.tokens, session.held, session.ahead,
        session.shortest, pool.page_bytes * pool.layers, low_block_bytes(session.config),
        [_digest(contents(number)) for number in range(len(blocks))], session.low,
        list(places.shape), [] if importance is None else list(importance.shape), xxhash.xxh3_64_intdigest(more), talk,
        windowed_block_bytes(session.config, session.cache_type), bare, threshold))
    prefix = _PREFIX.pack(MAGIC, VERSION, 0, len(header), xxhash.xxh3_64_intdigest(header))
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb", buffering=0) as file:
            _write(file, (prefix + header).ljust(_aligned(len(prefix) + len(header)), b"\0"))
            for number in range(len(blocks)):
                for page in contents(number):
                    _write(file, page.data)
            _write(file, more)
            os.fsync(file.fileno())
            _uncache(file.fileno())
        part.replace(path)
    except OSError as error:
        raise SessionError(f"{path}: the session cannot be saved: {(error.strerror or str(error)).lower()}; what was "
                           "saved before is still there") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _digest(pages: list[np.ndarray]) -> int:
    digest = xxhash.xxh3_64()
    for page in pages:
        digest.update(page.data)
    return digest.intdigest()


def _write(file: Any, data: Any) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view):]


def _uncache(descriptor: int) -> None:
    """The pages of a large file are of no more use, and count toward a limit."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
