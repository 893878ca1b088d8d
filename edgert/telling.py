"""What processes have in common that make a file for the one that started them: they tell it how that goes in JSON
objects, one in a line of standard output, and end when standard input does."""

import json
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any

AGAIN_S = 3
"""Seconds after which such a process is interrupted again: Python drops an exception, an interrupt's too, where an
object ends, and while it imports."""


def tell(**values: Any) -> None:
    """Write an object, in one piece: several threads may tell."""
    with suppress(BrokenPipeError):  # then standard input has ended too
        os.write(1, json.dumps(values).encode() + b"\n")


def end_with_parent() -> None:
    """From now on, interrupt this process when its standard input ends."""
    threading.Thread(target=_end_with_input, daemon=True).start()


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    while True:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(AGAIN_S)
