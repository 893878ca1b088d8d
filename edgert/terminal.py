"""The standard streams: open, readable in any encoding, and safe to show texts of others on."""

import codecs
import contextlib
import io
import json
import os
import sys

from .control_characters import visible
from .errors import EdgertError

_PLAIN = dict(zip("▁▂▃▄▅▆▇█▏━─└┤×µμ‘’“”„–—‐‑−•…→", [*"..:-=+*#|=-+|xuu''\"\"\"-----*", "...", "->"], strict=True))
"""How to write in ASCII what charts, our own texts and models' answers are full of."""


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: what an encoding lacks in ASCII, from `_PLAIN` or as \\u2265 and the like."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start:error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


codecs.register_error("edgert-in-ascii", _in_ascii)


def prepare_standard_streams() -> None:
    """Make all three streams usable: no character fails to be written, no closed descriptor goes to another file.

    Where the caller closed one (`>&-`), the next file opened would take its place, and be written what was meant for
    the user. What stands there instead refuses to be read or written, but for standard error: its words go nowhere.
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
    """Write for people, to standard output or error: at once, control characters made visible.

    Raises EdgertError where standard output refuses; that standard error does is no reason to stop.
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
    """On a terminal: a line on standard error that the next one replaces, and no text takes away."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{visible(text)}")
        sys.stderr.flush()


def write_answer(text: str) -> None:
    """Write what a model says: as it is into a file or pipe, as `cat` would; a terminal it must not steer."""
    _write(visible(text) if sys.stdout.isatty() else text)


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # no error worth words: the reader had enough
        raise
    except OSError as error:
        raise EdgertError(f"standard output cannot be written: {(error.strerror or str(error)).lower()}") from None


def read_standard_input() -> str:
    """All of standard input, in the locale's encoding; UTF-8 where that is but ASCII. Raises EdgertError."""
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
    """An argument or a line as Python gives it: with lone surrogates where its bytes did not suit the locale.

    They may be UTF-8 all the same, in an ASCII locale; otherwise raises UnicodeDecodeError.
    """
    return os.fsencode(typed).decode() if any("\udc80" <= c <= "\udcff" for c in typed) else typed


def end_standard_output() -> None:
    """Write what is still to be written, or nowhere: Python would complain when it tries again at the very end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
