"""What a user types or pastes: a line, several pasted lines, or lines between triple quotes."""

import os
from typing import NamedTuple

from edgert import EdgertError
from edgert.terminal import proper_text

_PROMPT, _MORE, _QUOTES = ">>> ", "... ", '"""'


class Typed(NamedTuple):
    """What was typed. quoted: it was between triple quotes, so a slash at its beginning is not a command."""

    text: str
    quoted: bool


def edit_lines() -> None:
    """Give `input` a line editor with history and pasting, if Python has one."""
    try:
        import readline
    except ImportError:
        return
    if "libedit" not in (readline.__doc__ or "") and os.environ.get("TERM", "dumb") != "dumb":
        # Terminals mark what is pasted if asked to, so that its line ends do not send it. GNU readline asks by itself,
        # but Python tells it not to; libedit cannot.
        readline.parse_and_bind("set enable-bracketed-paste on")


def read_typed() -> Typed:
    """Read the next line or lines. Raises EOFError, KeyboardInterrupt, and EdgertError for bytes that are not text."""
    text = _read(_PROMPT).strip()
    if "\n" not in text and text.startswith(_QUOTES):
        while not _is_quoted(text):
            text = f"{text}\n{_read(_MORE)}"
    if _is_quoted(text):
        return Typed(text.strip()[len(_QUOTES):-len(_QUOTES)].strip(), quoted=True)
    return Typed(text, quoted=False)


def _is_quoted(text: str) -> bool:
    text = text.strip()
    return text.startswith(_QUOTES) and text.endswith(_QUOTES) and len(text) >= 2 * len(_QUOTES)


def _read(prompt: str) -> str:
    try:
        return proper_text(input(prompt))
    except UnicodeDecodeError as error:
        raise EdgertError(f"that was not {error.encoding.upper()} text; is the terminal set to another encoding "
                          "than the locale?") from None
