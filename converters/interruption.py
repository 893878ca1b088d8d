"""Signals that end the program: not before what is half-written has been removed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

_ENDING = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
"""Those that are taken, where the program has left them at what they are in every Python program."""


@contextmanager
def cleaned_up() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise SystemExit, with 128 + the signal's number as shells have it.

    That unwinds the block as Ctrl-C does. Only the first signal counts: whoever closes a terminal sends two or three,
    and none of them may interrupt the cleaning up. Signals that are ignored, as under nohup, or that the program
    handles itself stay as they are, as do all where the block runs outside the main thread.
    """
    usual: dict[int, Any] = {}
    arrived: list[int] = []
    over = False

    def end(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)
        if len(arrived) == 1 and not over:
            _raise(number)

    try:
        try:
            if threading.current_thread() is threading.main_thread():
                for name, handler in _ENDING.items():
                    number = getattr(signal, name, None)  # there is no SIGHUP on Windows
                    if number is not None and signal.getsignal(number) == handler:
                        usual[number] = handler
                        signal.signal(number, end)
            yield
        finally:
            over = True
    finally:  # of its own: a signal may come just before that
        for number, handler in usual.items():
            signal.signal(number, handler)
    if arrived:
        _raise(arrived[0])


def _raise(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
