"""The standard streams: always open, usable in any encoding, and safe for showing text of others."""

import codecs
import contextlib
import io
import json
import os
import sys

from .control_characters import visible
from .errors import EdgertError

_PLAIN = dict(zip("░▁▂▃▄▅▆▇█▏━─└┤×µμ‘’“”„–—‐‑−•…→", [*":..:-=+*#|=-+|xuu''\"\"\"-----*", "...", "->"], strict=True))
"""ASCII in place of characters that are frequent in charts, in our own texts and in models' answers."""


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: replaces what an encoding lacks, by `_PLAIN` or by \\u2265 and the like."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start:error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


codecs.register_error("edgert-in-ascii", _in_ascii)


def prepare_standard_streams() -> None:
    """Make all three streams usable: every character can be written, and every descriptor is open.

    If the caller closed one (`>&-`), the next file to be opened would get its descriptor, and be written what was meant
    for the user. A closed stream is replaced by one that fails when it is used; standard error by one that writes
    nowhere.
    """
    for descriptor, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # the lowest that is free, which is this one
            os.set_inheritable(descriptor, True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 (a descriptor, for as long as the process)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", closefd=False))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="edgert-in-ascii")


def show(text: object = "", *, err: bool = False, end: str = "\n") -> None:
    """Write a line for people, to standard output or error, without delay and with control characters made visible.

    Raises EdgertError if standard output cannot be written; a failure of standard error is ignored.
    """
    if not err:
        _write(visible(str(text)) + end)
        return
    with contextlib.suppress(OSError):
        sys.stderr.write(visible(str(text)) + end)
        sys.stderr.flush()


def show_json(value: object) -> None:
    """Write one JSON object for programs, in ASCII."""
    _write(json.dumps(value).replace("\x7f", "\\u007f") + "\n")


def show_passing(text: str = "") -> None:
    """On a terminal, write a line on standard error that the next call replaces; without text it is removed."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{visible(text)}")
        sys.stderr.flush()


def write_answer(text: str) -> None:
    """Write a model's answer: unchanged to a file or pipe; to a terminal with control characters made visible."""
    _write(visible(text) if sys.stdout.isatty() else text)


class AnswerWriter:
    """Writes an answer as it comes, and what the model thinks before it: all of it, between the lines that Ollama has
    ("show"), as one passing line that says how much there is ("fold"), or nothing ("hide").

    more: how one gets to see what is folded, said once it is there.
    """

    def __init__(self, think: str, more: str) -> None:
        self._think, self._more = think, more
        self._thoughts = 0
        self._thinking = False

    def write(self, text: str, thinking: str) -> None:
        if thinking:
            self._thoughts += 1
            if self._think == "show":
                write_answer(thinking if self._thinking else f"Thinking...\n{thinking}")
            elif self._think == "fold":
                show_passing(f"thinking: {self._thoughts} tokens")
            self._thinking = True
        if text:
            self.end()
            write_answer(text)

    def end(self) -> None:
        """The end of the thoughts, if there are any; also of an answer that had no more."""
        if self._thinking and self._think == "show":
            write_answer("\n...done thinking.\n\n")
        elif self._thinking and self._think == "fold":
            show_passing()
            if sys.stderr.isatty():
                show(f"(thought: {self._thoughts} tokens; {self._more})", err=True)
        self._thinking = False


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # not an error to report: the reader has what it wanted
        raise
    except OSError as error:
        raise EdgertError(f"standard output cannot be written: {(error.strerror or str(error)).lower()}") from None


def read_standard_input() -> str:
    """Read all of standard input in the locale's encoding, in UTF-8 if that is ASCII. Raises EdgertError."""
    stream = sys.stdin
    if isinstance(stream, io.TextIOWrapper):
        ascii_only = codecs.lookup(stream.encoding).name == "ascii"
        stream.reconfigure(encoding="utf-8" if ascii_only else None, errors="strict")
    try:
        return stream.read()
    except UnicodeDecodeError as error:
        raise EdgertError(f"standard input is not {error.encoding.upper()} text: byte {error.object[error.start]:#04x} "
                          f"at offset {error.start}; convert it, for instance with iconv") from None
    except OSError as error:
        raise EdgertError(f"standard input cannot be read: {(error.strerror or str(error)).lower()}") from None


def proper_text(typed: str) -> str:
    """Decode an argument or a typed line in which Python has put lone surrogates for bytes that do not suit the locale.

    The bytes are taken for UTF-8, as they are in an ASCII locale. Raises UnicodeDecodeError if they are not.
    """
    return os.fsencode(typed).decode() if any("\udc80" <= c <= "\udcff" for c in typed) else typed


def end_standard_output() -> None:
    """Flush standard output; if that fails, discard the rest: Python would complain when it tries again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
