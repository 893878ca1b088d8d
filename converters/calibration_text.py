"""What is run through a model to calibrate it: windows of token ids, of the text that ships or of the user's own."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from edgert.errors import SourceError

from .source import Source

WINDOW = 256
"""Tokens of text computed from an empty context."""
MAX_WINDOWS = 16
_PART = 16 * WINDOW
"""Bytes that are read at one place of a large file: enough for a window of nearly any text."""


def shipped_windows(source: Source) -> np.ndarray | None:
    """The first windows of `calibration.txt`, as `_windows` makes them; None if it has no window."""
    text = files(__package__).joinpath("calibration.txt").read_text(encoding="utf-8")
    windows = _windows(source, [text])[:MAX_WINDOWS]
    return windows if len(windows) else None


def windows_of(source: Source, paths: Sequence[Path]) -> np.ndarray:
    """At most MAX_WINDOWS windows of the user's texts, from all over them, as `_windows` makes them. Of a large file
    only some places are read: memory does not grow with it.

    Raises SourceError where one cannot be read, is empty or not text in UTF-8, or all are too short.
    """
    every = _windows(source, [part for path in paths for part in _parts(path)])
    if not len(every):
        named = ", ".join(map(str, paths))
        raise SourceError(f"{named}: too short to calibrate with: fewer than {WINDOW} tokens in one piece; give more "
                          "text, or leave --calibrate out for the text that comes with edgert")
    return every[np.unique(np.linspace(0, len(every) - 1, MAX_WINDOWS).astype(int))]


def _windows(source: Source, parts: Sequence[str]) -> np.ndarray:
    """All whole windows of some texts: token ids, int64 of shape (windows, WINDOW), each beginning with BOS where the
    model wants one."""
    tokenizer = Tokenizer.from_str(source.tokenizer_json)
    found = []
    for part in parts:
        ids = np.array(tokenizer.encode(part, add_special_tokens=False).ids, np.int64)
        found.append(ids[:len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW))
    windows = np.concatenate(found)
    bos = source.generation.get("bos_token_id")
    if source.generation.get("add_bos_token") and bos is not None:
        windows[:, 0] = bos
    return windows


def _parts(path: Path) -> list[str]:
    """A file's text: the whole of a small one, MAX_WINDOWS places of a large one. Raises SourceError."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            places = [0] if size <= MAX_WINDOWS * _PART else np.linspace(0, size - _PART, MAX_WINDOWS).astype(int)
            parts = []
            for place in places:
                file.seek(int(place))
                parts.append(file.read(size if len(places) == 1 else _PART))
    except OSError as error:
        raise SourceError(f"{path}: the text to calibrate with cannot be read: {error.strerror}") from error
    if not any(part.strip() for part in parts):
        raise SourceError(f"{path}: is empty; give a text to calibrate with, or leave --calibrate out")
    return [_decoded(path, part, cut=len(parts) > 1) for part in parts]


def _decoded(path: Path, part: bytes, *, cut: bool) -> str:
    """UTF-8 as text. cut: characters at either end may be incomplete. Raises SourceError."""
    if cut:
        while part and part[0] & 0xC0 == 0x80:
            part = part[1:]
    try:
        text = part.decode()
    except UnicodeDecodeError as error:
        text = "\0" if not cut or error.start < len(part) - 3 else part[:error.start].decode()
    if "\0" in text:
        raise SourceError(f"{path}: is not text in UTF-8; give a text to calibrate with")
    return text
