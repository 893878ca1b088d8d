"""What was typed in the terminal chat, kept in a file for later chats."""

import os
from collections.abc import Iterable
from pathlib import Path

import platformdirs
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from edgert.terminal import show

_MOST_BYTES, _KEPT = 1 << 20, 1000
"""Of a file that has grown larger than so many bytes, so many of the last texts are kept."""


def history_file() -> Path:
    """Where the history is."""
    return Path(platformdirs.user_data_dir("edgert")) / "chat-history"


def open_history(kept: bool) -> History:
    """The history of earlier chats, to which this one adds; or if it is not kept, or cannot be, one for this chat."""
    if not kept:
        return InMemoryHistory()
    try:
        return _KeptHistory(history_file())
    except OSError as error:
        _tell(error)
        return InMemoryHistory()


def _tell(error: OSError) -> None:
    show(f"what you type is not kept for later chats: {history_file()}: {(error.strerror or str(error)).lower()} "
         "(--no-history does without)", err=True)


class _KeptHistory(FileHistory):
    """A file that nobody but its owner may read. Raises OSError if there can be none."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
        super().__init__(path)
        self._fails = False
        if size > _MOST_BYTES:
            self._shorten(path)

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError as error:
            if not self._fails:
                _tell(error)
            self._fails = True

    def _shorten(self, path: Path) -> None:
        latest: Iterable[str] = list(self.load_history_strings())[:_KEPT]
        part = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            part.touch(mode=0o600)
            shorter = FileHistory(part)
            for text in reversed(list(latest)):
                shorter.store_string(text)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
