"""How much memory a process uses before anything is loaded: measured in a fresh process that starts like `edgert chat`.

Of all commands but `edgert serve`, that one uses most memory; so a budget that is planned with it works with each of
them. The server takes 8 MiB more.

    python -m edgert.measuring.startup BUNDLE

prints it, in bytes, as JSON.
"""

import importlib
import json
import os
import subprocess
import sys
from typing import Any

from edgert.errors import EdgertError

_PATIENCE_S = 120.0


def process_cost(bundle: str | os.PathLike[str]) -> int:
    """Resident bytes of a fresh process at the point where it makes the memory plan of a bundle. Raises EdgertError."""
    try:
        done = subprocess.run([sys.executable, "-P", "-m", "edgert.measuring.startup", os.fspath(bundle)],
                              capture_output=True, text=True, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise EdgertError(f"a process that was to be measured did not start in {_PATIENCE_S:.0f} s") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or ["it ended without a word"]
        raise EdgertError(f"a process that was to be measured failed: {last[0]}") from None
    if "error" in answer:
        raise EdgertError(answer["error"])
    return int(answer["process_bytes"])


def main() -> None:
    cli = importlib.import_module("edgert.cli")  # by name: it is above this room, as are the modules it names
    for name in (cli.COMMANDS["chat"][0], "edgert.apps.terminal_chat"):
        importlib.import_module(name)
    from edgert.bundle import Bundle
    from edgert.memory.budget import process_bytes
    from edgert.opening import load_library, read_text
    try:
        with Bundle(sys.argv[1]) as bundle:
            kept = load_library(), read_text(bundle)
            print(json.dumps({"process_bytes": process_bytes()}))
            del kept
    except EdgertError as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main()
