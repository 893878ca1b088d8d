"""Makes the bundle of a catalogue's model in a process of its own: python -m edgert.apps.making NAME.

It writes JSON objects, one in a line: {"doing", "done", "total"} while it goes on, and in the end {"path"} or
{"error"}. When its standard input ends, or at SIGINT or SIGTERM, it tidies up and ends too.
"""

import importlib
import os
import signal
import sys

from edgert.errors import EdgertError
from edgert.telling import end_with_parent, tell

from .bundles import make_bundle
from .maker import ENDING

_NICE = 10
"""How much less than others it wants the processor: answers come first."""
_IMPORTED_FIRST = ("edgert.converters.convert", "filelock", "huggingface_hub.file_download")
"""What is needed later: importing drops, and shows, an interrupt that comes while it takes a lock."""


def main(name: str) -> None:
    """Make the bundle of the model `name`."""
    for number in ENDING:  # also where whoever started us ignores them
        signal.signal(number, signal.default_int_handler)
    os.nice(_NICE)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    for module in _IMPORTED_FIRST:
        importlib.import_module(module)

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # Maker starts this process with them blocked
        end_with_parent()
        try:
            path = make_bundle(name, lambda what, done, total: tell(doing=what, done=done, total=total))
            tell(path=os.fspath(path))
        except EdgertError as error:
            tell(error=str(error))
        _ignore_ends()
    except KeyboardInterrupt:
        _ignore_ends()
        sys.exit(130)


def _ignore_ends() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main(sys.argv[1])
