"""What a user types or pastes: a line, several pasted lines, or lines between triple quotes."""

import codecs
import os
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from edgert import EdgertError
from edgert.terminal import proper_text, show

PROMPT, MORE, QUOTES = ">>> ", "... ", '"""'


class Typed(NamedTuple):
    """What was typed. quoted: it was between triple quotes, so a slash at its beginning is not a command."""

    text: str
    quoted: bool


class Candidate(NamedTuple):
    """What a word may be completed to."""

    text: str
    about: str = ""


class Completion(NamedTuple):
    """What the end of a line may be completed to. begun: that end. files: what files' names end with, if they may stand
    there too."""

    begun: str
    candidates: list[Candidate]
    files: str | None = None


Complete = Callable[[str], Completion]
"""Is given what stands before the cursor."""


class Lines(Protocol):
    """Where lines come from. keys: what they do, for the help."""

    keys: Mapping[str, str]

    def read(self, complete: Complete) -> Typed:
        """Read the next line or lines. Raises EOFError, KeyboardInterrupt, and EdgertError for bytes that are not text.
        """
        ...


def open_lines(history: bool) -> Lines:
    """The line editor, where the terminal has what it needs. history: keep what is typed, for later chats."""
    if (sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
            and all(codecs.lookup(stream.encoding).name == "utf-8" for stream in (sys.stdin, sys.stdout))):
        from .line_editor import LineEditor
        return LineEditor(history)
    return PlainLines()


class PlainLines:
    """Lines of a terminal that can do little."""

    keys: Mapping[str, str] = {
        '"""': "begins and ends a question of several lines; most terminals paste several lines as one anyway"}

    def __init__(self) -> None:
        """Give `input` a line editor with history and pasting, if Python has one."""
        try:
            import readline
        except ImportError:
            return
        if "libedit" not in (readline.__doc__ or "") and os.environ.get("TERM", "dumb") != "dumb":
            # Terminals mark what is pasted if asked to, so that its line ends do not send it. GNU readline asks by
            # itself, but Python tells it not to; libedit cannot.
            readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self, _complete: Complete) -> Typed:
        try:
            text = read_text(lambda: input(PROMPT)).strip()
            if begins_quote(text):
                while not is_quoted(text):
                    text = f"{text}\n{read_text(lambda: input(MORE))}"
        except (EOFError, KeyboardInterrupt):
            show()  # the cursor is still behind what was typed
            raise
        return typed(text)


def begins_quote(text: str) -> bool:
    """Whether a line begins a text of several lines, which is not over yet."""
    return "\n" not in text and text.startswith(QUOTES) and not is_quoted(text)


def typed(text: str) -> Typed:
    """What a text means that was sent."""
    text = text.strip()
    if is_quoted(text):
        return Typed(text[len(QUOTES):-len(QUOTES)].strip(), quoted=True)
    return Typed(text, quoted=False)


def is_quoted(text: str) -> bool:
    """Whether a text stands between triple quotes."""
    text = text.strip()
    return text.startswith(QUOTES) and text.endswith(QUOTES) and len(text) >= 2 * len(QUOTES)


def read_text(read: Callable[[], str]) -> str:
    """What `read` reads. Raises EdgertError for bytes that are not text."""
    try:
        return proper_text(read())
    except UnicodeDecodeError as error:
        raise EdgertError(f"that was not {error.encoding.upper()} text; is the terminal set to another encoding "
                          "than the locale?") from None
