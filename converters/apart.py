"""Converting a GGUF file in a process of its own, so that the one that wants the bundle stays within its memory budget.

    python -m edgert.converters.apart SOURCE OUT

It writes JSON objects, one in a line: {"done", "total"} while it goes on, in weights, and in the end {"converted"}, or
{"error", "unsupported"}. When its standard input ends, or at SIGINT, it tidies up and ends too.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgert.errors import SourceError, UnsupportedError
from edgert.telling import end_with_parent, tell

_INTERRUPTED = 130


def convert_apart(source: Path, out: Path, progress: Callable[[int, int], object],
                  started: Callable[[Callable[[], None]], object]) -> None:
    """Convert a GGUF file to a bundle at `out`. progress: called with weights done, and in all. started: called with
    what ends it early, from any thread.

    Raises SourceError, and UnsupportedError where the file is whole, but of a kind that edgert does not know.
    """
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgert.converters.apart", str(source), str(out)],
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as error:
        raise SourceError(f"{source}: no process can be started that converts it: {error.strerror or error}") from None
    last: dict[str, Any] = {}
    assert process.stdin is not None and process.stdout is not None
    started(process.stdin.close)
    try:
        for line in process.stdout:
            with suppress(ValueError):  # it was killed in the midst of one
                last = json.loads(line)
                if "total" in last:
                    progress(last["done"], last["total"])
    finally:
        process.stdin.close()
        process.stdout.close()
        status = process.wait()
    if "converted" in last:
        return
    if "error" in last:
        raise (UnsupportedError if last["unsupported"] else SourceError)(last["error"])
    if status in (_INTERRUPTED, -signal.SIGINT):
        raise SourceError(f"{source}: converting it was interrupted")
    raise SourceError(f"{source}: the process that converts it ended with status {status}; is there enough memory?")


def main(source: str, out: str) -> None:
    """Convert, and tell how it goes."""
    end_with_parent()
    try:
        from .gguf_header import read_header
        from .gguf_parts import parts_of
        from .reading import gguf_architecture, known_family

        # First what is quick: converting takes much that has to be imported.
        first = parts_of(Path(source))[0]
        known_family(first, gguf_architecture(read_header(first).metadata))
        from .convert import convert

        convert(source, out, progress=lambda what, done, total: tell(done=done, total=total))
        tell(converted=out)
    except Exception as error:
        tell(error=str(error) or type(error).__name__, unsupported=isinstance(error, UnsupportedError))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main(*sys.argv[1:])
