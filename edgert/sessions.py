"""Conversations that are kept in files, by their names: where they are, what is in them, and who uses them."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import platformdirs

from .engine.session_file import Saved, open_session
from .errors import SessionError

_SUFFIX = ".session"
_NAME = re.compile(r"[^\W.][\w.-]{0,99}")


def sessions_folder() -> Path:
    """The folder for sessions: $EDGERT_SESSIONS, or `sessions` in the user's data folder."""
    if folder := os.environ.get("EDGERT_SESSIONS"):
        return Path(folder)
    return Path(platformdirs.user_data_dir("edgert")) / "sessions"


def session_path(name: str) -> Path:
    """The file of a session. Raises SessionError for a name that none can have."""
    if not _NAME.fullmatch(name):
        raise SessionError(f"{name!r} cannot be the name of a session; use letters, digits, and - or _ between them")
    return sessions_folder() / (name + _SUFFIX)


@dataclass(frozen=True)
class SessionInfo:
    """A session that is kept. size: of its file, in bytes. saved: its header; None if the file is damaged."""

    name: str
    path: Path
    size: int
    changed: datetime
    saved: Saved | None


def list_sessions() -> list[SessionInfo]:
    """All sessions, those that were used last first."""
    found = []
    folder = sessions_folder()
    for path in folder.glob(f"*{_SUFFIX}") if folder.is_dir() else ():
        if not path.name.startswith("."):
            try:
                found.append(_info(path))
            except FileNotFoundError:
                continue  # removed just now
    return sorted(found, key=lambda info: info.changed, reverse=True)


def session_info(name: str) -> SessionInfo:
    """A session. Raises SessionError if there is none."""
    try:
        return _info(session_path(name))
    except FileNotFoundError:
        raise SessionError(f"there is no session {name}; `edgert sessions` lists them") from None


def _info(path: Path) -> SessionInfo:
    stat = path.stat()
    try:
        saved = open_session(path).saved
    except SessionError:
        saved = None
    changed = datetime.fromtimestamp(stat.st_mtime)
    return SessionInfo(path.name.removesuffix(_SUFFIX), path, stat.st_size, changed, saved)


def remove_session(name: str) -> None:
    """Remove a session. Raises SessionError if there is none, or a program uses it."""
    info = session_info(name)
    with using_session(name):
        info.path.unlink(missing_ok=True)


@contextmanager
def using_session(name: str) -> Iterator[Path]:
    """Have a session, which need not be there yet, for oneself; gives its file. Raises SessionError.

    The lock is the operating system's, on a file beside it, which stays; it ends with the process that holds it.
    """
    from filelock import FileLock, Timeout
    path = session_path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire(blocking=False)
    except Timeout:
        raise SessionError(f"the session {name} is in use by another program; end that first, or take another "
                           "name") from None
    except OSError as error:
        raise SessionError(f"{path.parent}: sessions cannot be kept there: {(error.strerror or str(error)).lower()}; "
                           "set EDGERT_SESSIONS to another folder") from None
    try:
        yield path
    finally:
        lock.release()
