"""How much memory a process uses before anything is loaded: measured in a fresh process that starts like `edgert run`,
`edgert chat` on a terminal, `edgert serve` or `edgert app`.

    python -m edgert.measuring.startup BUNDLE run|chat|serve|app

prints it as JSON: the fields of `ProcessCost`.
"""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from edgert.errors import EdgertError

RUN, CHAT, SERVE, APP = PROGRAMS = ("run", "chat", "serve", "app")
_SERVER = ("edgert.apps.server.running", "uvicorn.protocols.http.h11_impl", "uvicorn.loops.asyncio",
           "uvicorn.lifespan.off")
_CHAT = ("edgert.apps.terminal_chat", "edgert.apps.line_editor")
_MODULES = {RUN: (), CHAT: _CHAT, SERVE: _SERVER, APP: _SERVER}
"""What each has imported, beside its command, when it makes its plan. By name: they are above this room."""
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class ProcessCost:
    """In bytes. process: resident at the point where the memory plan is made. structured: what structured output takes
    beside that; 0 where the program has none. window: what the app's window took beside the budget when it was open
    last; None if it never was, and for other programs."""

    process: int
    structured: int
    window: int | None


def process_cost(bundle: str | os.PathLike[str], program: str = RUN) -> ProcessCost:
    """What a program costs with a bundle. program: of `PROGRAMS`. Raises EdgertError."""
    try:
        done = subprocess.run([sys.executable, "-P", "-m", "edgert.measuring.startup", os.fspath(bundle), program],
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
    return ProcessCost(**answer)


def _measure(path: str, program: str) -> ProcessCost:
    cli = importlib.import_module("edgert.cli")
    for name in (cli.COMMANDS[program][0], *_MODULES[program]):
        importlib.import_module(name)
    from edgert.bundle import Bundle
    from edgert.memory.budget import process_bytes
    from edgert.opening import load_library, read_text
    window = importlib.import_module("edgert.apps.desktop").window_memory_of_last_time() if program == APP else None
    with Bundle(path) as bundle:
        kept: list[object] = [load_library(), text := read_text(bundle)]
        process = process_bytes()
        if program != SERVE:
            return ProcessCost(process, 0, window)
        from edgert.generation.grammar import PARSER_BYTES, Grammars
        kept.append(Grammars(text.tokenizer, bundle.header.config.vocab_size))
        return ProcessCost(process, process_bytes() - process + PARSER_BYTES, None)


def main() -> None:
    try:
        print(json.dumps(asdict(_measure(*sys.argv[1:]))))
    except EdgertError as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main()
