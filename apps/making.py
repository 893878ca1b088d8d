"""Makes the bundle of a catalogue's model in a process of its own: python -m edgert.apps.making NAME.

It writes JSON objects, one in a line: {"doing", "done", "total"} while it goes on, and in the end {"path"} or
{"error"}. When its standard input ends, or at SIGINT or SIGTERM, it tidies up and ends too.
"""

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any

from edgert.errors import EdgertError

from .bundles import make_bundle

_NICE = 10
"""How much less than others it wants the processor: answers come first."""


def main(name: str) -> None:
    """Make the bundle of the model `name`."""
    for number in (signal.SIGINT, signal.SIGTERM):  # also where whoever started us ignores the first
        signal.signal(number, signal.default_int_handler)
    os.nice(_NICE)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

    def tell(**values: Any) -> None:  # in one piece: what has been fetched is told by another thread
        with suppress(BrokenPipeError):  # then standard input has ended too
            os.write(1, json.dumps(values).encode() + b"\n")

    try:
        path = make_bundle(name, lambda what, done, total: tell(doing=what, done=done, total=total))
        tell(path=os.fspath(path))
    except EdgertError as error:
        tell(error=str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main(sys.argv[1])
