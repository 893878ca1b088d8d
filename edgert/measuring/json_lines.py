"""Files of JSON lines, one object a line, in which questions and prompts are kept."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from edgert.errors import EdgertError, ModelError
from edgert.text.tokenizer import check_unicode

SHIPPED = "shipped"
"""In place of a file's name: the file that comes with edgert."""


class Line(NamedTuple):
    """One object of a file. where: the file and the line, to begin a message with."""

    where: str
    fields: dict[str, Any]

    def get(self, key: str) -> Any:
        """A field. Raises ModelError if the object has none of this name."""
        if key not in self.fields:
            raise ModelError(f"{self.where}: has no \"{key}\"")
        return self.fields[key]

    def text(self, key: str, value: Any) -> str:
        """`value`, which is the field `key` or stands in it. Raises ModelError if it is no text, or an empty one."""
        if not isinstance(value, str) or not value.strip():
            raise ModelError(f"{self.where}: \"{key}\" holds {_short(value)}; it must be a text, and not empty")
        check_unicode(value, f"{self.where}: \"{key}\" cannot be used")
        return value


def read_lines(path: str, shipped: str) -> list[Line]:
    """Read a file in UTF-8; empty lines count for nothing. path: SHIPPED for `shipped`, a file beside this module.

    Raises ModelError, naming the line, for what is not UTF-8 or not a JSON object, and for a file without lines.
    """
    name, place = (shipped, files(__package__).joinpath(shipped)) if path == SHIPPED else (path, Path(path))
    try:
        data = place.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    lines = [_line(f"{name}, line {number}", line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if not lines:
        raise ModelError(f"{path}: is empty; it needs one JSON object a line")
    return lines


def _line(where: str, data: bytes) -> Line:
    try:
        value = json.loads(data.decode())
    except UnicodeDecodeError:
        raise ModelError(f"{where}: is not UTF-8 text") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelError(f"{where}: is not a JSON object")
    return Line(where, value)


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Puts `where` before the message of an EdgertError."""
    try:
        yield
    except EdgertError as error:
        raise type(error)(f"{where}: {error}") from None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
