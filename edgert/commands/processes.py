"""`edgert ps`: which edgert programs are running."""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

import click
import psutil

from edgert.terminal import show, show_json

_WITH_MODELS = ("app", "bench", "chat", "eval", "run", "serve", "web")


@click.command("ps")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Show the edgert programs of this machine that have a model, and the memory that each has resident."""
    found = list(filter(None, map(_values, psutil.process_iter(["cmdline"]))))
    if as_json:
        show_json({"processes": found})
        return
    if not found:
        show("no edgert program with a model is running")
    for one in found:
        minutes = int(one["running_s"]) // 60
        show(f"{one['pid']:8}  {one['resident_bytes'] / (1 << 20):7.0f} MiB  {minutes // 60:3}:{minutes % 60:02} h  "
             f"{one['command']}")


def _values(process: psutil.Process) -> dict[str, Any] | None:
    """What is shown of a process; None of others, and of those that have just ended or are not for us to see."""
    words = _called(process.info["cmdline"] or ())
    if not words or words[0] not in _WITH_MODELS or process.pid == os.getpid():
        return None
    try:
        return {"pid": process.pid, "resident_bytes": process.memory_info().rss,
                "running_s": round(time.time() - process.create_time(), 1),
                "command": shlex.join(["edgert", *words])}
    except psutil.Error:
        return None


def _called(command_line: Sequence[str]) -> Sequence[str]:
    """The arguments of the edgert program that a command line starts; empty for other programs."""
    for place, word in enumerate(command_line[:8]):
        if word == "-m" and command_line[place + 1:place + 2] == ["edgert"]:
            return command_line[place + 2:]
        if os.path.basename(word) in ("edgert", "edgert.exe") and (place == 0 or _is_python(command_line[0])):  # noqa: PTH119
            return command_line[place + 1:]
    return ()


def _is_python(program: str) -> bool:
    return os.path.basename(program).startswith(("python", os.path.basename(sys.executable)))  # noqa: PTH119
