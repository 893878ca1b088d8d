"""What is known of a bundle that is not whole yet, in a file beside it: enough to go on after an interruption."""

import contextlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgert.errors import SourceError

_MAGIC = b"EDGERT JOURNAL\r\n"


@dataclass(frozen=True)
class Entry:
    """How far a bundle was written.

    written, digests: of each section the bytes that it has so far, and their xxh3_64. state, arrays: what whoever makes
    the bundle needs to go on; JSON, and arrays by name.
    """

    written: Mapping[str, int]
    digests: Mapping[str, str]
    state: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


class Journal:
    """The file PATH.journal, which is there whole or not at all.

    key: what the bundle is made of and how; an entry of another key is none.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self._key = path.with_name(path.name + ".journal"), key
        self._new = path.with_name(path.name + ".journal.new")

    def write(self, entry: Entry) -> None:
        """Replace the entry by a later one. Raises OSError; then the earlier one is still there."""
        text = json.dumps({"key": self._key, "written": entry.written, "digests": entry.digests, "state": entry.state})
        arrays: dict[str, Any] = {"entry": np.frombuffer(text.encode(), np.uint8), **entry.arrays}
        try:
            with self._new.open("wb") as file:
                file.write(_MAGIC)
                np.savez(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            self._new.replace(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                self._new.unlink()
            raise

    def read(self) -> Entry | None:
        """The entry; None where there is none with our key, or it is damaged."""
        try:
            with self.path.open("rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    return None
                with np.load(file, allow_pickle=False) as arrays:
                    found = {name: arrays[name] for name in arrays.files}
            values = json.loads(found.pop("entry").tobytes())
            if values["key"] != self._key:
                return None
            return Entry(values["written"], values["digests"], values["state"], found)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
            return None

    def remove(self) -> None:
        """Remove the entry, if it is one, and what was left of one that was being written."""
        for path in (self.path, self._new):
            with contextlib.suppress(OSError):
                with path.open("rb") as file:
                    ours = file.read(len(_MAGIC)) == _MAGIC
                if ours:
                    path.unlink()


@contextlib.contextmanager
def until_whole(journal: Journal) -> Iterator[None]:
    """Have a journal stay if the block is interrupted; it goes when that ends well, or the source is at fault."""
    try:
        yield
    except SourceError:
        journal.remove()
        raise
    journal.remove()
