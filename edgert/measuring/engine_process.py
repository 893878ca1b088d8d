"""A process that holds one engine and measures it on request, so that several engines can be measured alternately.

    python -m edgert.measuring.engine_process BUNDLE THREADS CONTEXT [MEMORY]

Requests are lines of JSON on standard input: {"prompt": [ids], "decode": n, "prefill": n, "go_on": false}; so are the
answers.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .process import peak_rss_bytes

Forward = Callable[[Sequence[int]], np.ndarray]


def measure(forward: Forward, reset: Callable[[], None], prompt: Sequence[int], decode: int,
            prefill: int, *, go_on: bool = False) -> dict[str, Any]:
    """Measure greedy decoding after a prompt, then prefill of `prefill` tokens, then forget both.

    go_on: do not forget what was computed before, nor this: the prompt comes after it.
    Returns first_token_s, seconds from the prompt to the first token; decode_tok_s, tokens per second after the first
    quarter of the answer; prefill_tok_s; token_ids; peak_rss_bytes.
    """
    if not go_on:
        reset()
    started = time.perf_counter()
    logits = forward(prompt)
    tokens, stamps = [], []
    while True:
        tokens.append(int(logits[-1].argmax()))
        stamps.append(time.perf_counter())
        if len(tokens) == decode:
            break
        logits = forward(tokens[-1:])
    quarter = len(stamps) // 4
    result: dict[str, Any] = {
        "first_token_s": stamps[0] - started, "token_ids": tokens,
        "decode_tok_s": (len(stamps) - 1 - quarter) / (stamps[-1] - stamps[quarter])}
    if prefill:
        reset()
        batch = (list(prompt) * (prefill // len(prompt) + 1))[:prefill]
        started = time.perf_counter()
        forward(batch)
        result["prefill_tok_s"] = prefill / (time.perf_counter() - started)
    if not go_on:
        reset()
    result["peak_rss_bytes"] = peak_rss_bytes()
    return result


def serve(forward: Forward, reset: Callable[[], None], load_s: float) -> None:
    """Answer requests until standard input ends."""
    print(json.dumps({"load_s": load_s}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(forward, reset, **json.loads(line))), flush=True)


def main() -> None:
    from edgert.model import load
    path, threads, context, *memory = sys.argv[1:]
    started = time.perf_counter()
    with load(path, threads=int(threads), context=int(context), memory=memory[0] if memory else None) as model:
        serve(model.extend, model.reset, time.perf_counter() - started)


if __name__ == "__main__":
    main()
