"""The process that computes embeddings: python -m edgert.embeddings.process MODEL PREPARED THREADS IDLE_S.

MODEL is the folder or file that `read_recipe` takes, PREPARED its model as `preparing` wrote it. Requests come on
standard input, answers go to standard output (edgert/pipes.py): first {"ready": true}; then for {"texts": [...]} their
vectors with {"tokens", "cut"}, and for {"measure": true} {"peak", "dimension"}: the most memory that it takes, in
bytes. {"error"} in place of any. It ends when standard input does, or when nothing came for IDLE_S seconds.
"""

import os
import select
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgert.errors import EdgertError
from edgert.pipes import receive, send

from .recipe import read_recipe


def main(model: str, prepared: str, threads: str, idle_s: str) -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        from .computing import Computing
        recipe = read_recipe(Path(model))
        computing = Computing(recipe, Path(prepared), int(threads))
    except EdgertError as error:
        send(answers, {"error": str(error)})
        return
    send(answers, {"ready": True})
    while select.select([0], [], [], float(idle_s))[0]:
        try:
            asked, _ = receive(0)
        except EOFError:
            return
        try:
            send(answers, *_answer(computing, asked))
        except BrokenPipeError:
            return


def _answer(computing: Any, asked: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray | None]:
    try:
        if asked.get("measure"):
            from edgert.process import peak_rss_bytes
            dimension = computing.compute_most()
            return {"peak": peak_rss_bytes(), "dimension": dimension}, None
        computed = computing.compute(asked["texts"])
        return {"tokens": computed.tokens, "cut": computed.cut}, computed.vectors
    except Exception as error:  # onnxruntime's own have no base in common
        return {"error": f"onnxruntime failed: {str(error).strip()}"}, None


if __name__ == "__main__":
    main(*sys.argv[1:])
