"""A process that holds one engine and measures it on request, so that several engines can be measured alternately.

    python -m edgert.measuring.engine_process BUNDLE THREADS CONTEXT SPECULATION KV_TYPE MAX_LOSS [MEMORY]

KV_TYPE may be empty. Requests are lines of JSON on standard input: {"prompt": [ids], "decode": n, "prefill": n,
"go_on": false}; so are the answers.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgert.process import peak_rss_bytes

if TYPE_CHECKING:  # peer.py's process does without
    from edgert.model import Model

Forward = Callable[[Sequence[int]], np.ndarray]
Passes = list[tuple[float, list[int]]]
"""Of an answer: when each pass over the weights was done, and the tokens that it brought."""


class Measured(NamedTuple):
    """What is measured of an engine. decode: a greedy answer of so many tokens, after a prompt that follows all that
    was computed since `reset`. forward: computes new tokens."""

    decode: Callable[[Sequence[int], int], Passes]
    forward: Forward
    reset: Callable[[], None]


def measure(engine: Measured, prompt: Sequence[int], decode: int, prefill: int, *,
            go_on: bool = False) -> dict[str, Any]:
    """Measure greedy decoding after a prompt, then prefill of `prefill` tokens, then forget both.

    go_on: do not forget what was computed before, nor this: the prompt comes after it.
    Returns first_token_s, seconds from the prompt to the first token; decode_tok_s, tokens per second after the first
    quarter of the answer; tokens_per_pass; prefill_tok_s; token_ids; peak_rss_bytes.
    """
    if not go_on:
        engine.reset()
    started = time.perf_counter()
    passes = engine.decode(prompt, decode)
    tokens, done = [], []
    for when, new in passes:
        tokens += new
        done.append((when, len(tokens)))
    begun, before = next((early for early in done[:-1] if early[1] > decode // 4), done[-2])
    result: dict[str, Any] = {
        "first_token_s": done[0][0] - started, "token_ids": tokens,
        "decode_tok_s": (decode - before) / (done[-1][0] - begun),
        "tokens_per_pass": (decode - 1) / (len(done) - 1)}
    if prefill:
        engine.reset()
        batch = (list(prompt) * (prefill // len(prompt) + 1))[:prefill]
        started = time.perf_counter()
        engine.forward(batch)
        result["prefill_tok_s"] = prefill / (time.perf_counter() - started)
    if not go_on:
        engine.reset()
    result["peak_rss_bytes"] = peak_rss_bytes()
    return result


def one_by_one(forward: Forward) -> Callable[[Sequence[int], int], Passes]:
    """Measured.decode of an engine that brings a token a pass."""
    def decode(prompt: Sequence[int], count: int) -> Passes:
        passes: Passes = []
        new = prompt
        while len(passes) < count:
            token = int(forward(new)[-1].argmax())
            passes.append((time.perf_counter(), [token]))
            new = [token]
        return passes

    return decode


class _Answers:
    """Answers of a model, each after all before it until `reset`."""

    def __init__(self, model: "Model", max_loss: float) -> None:
        self._model, self._max_loss = model, max_loss
        self._before: list[int] = []

    def decode(self, prompt: Sequence[int], count: int) -> Passes:
        ids = [*self._before, *prompt]
        answer = self._model.generate(ids, max_tokens=count, ignore_eos=True, max_loss=self._max_loss)
        passes: Passes = []
        for piece in answer:
            if piece.token_id is not None:
                if len(passes) <= answer.statistics.passes:
                    passes.append((time.perf_counter(), []))
                passes[-1][1].append(piece.token_id)
        self._before = ids + answer.token_ids[:-1]
        return passes

    def reset(self) -> None:
        self._model.reset()
        self._before = []


def serve(engine: Measured, load_s: float) -> None:
    """Answer requests until standard input ends."""
    print(json.dumps({"load_s": load_s}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(engine, **json.loads(line))), flush=True)


def main() -> None:
    from edgert.loading import load
    path, threads, context, speculation, kv_type, max_loss, *memory = sys.argv[1:]
    started = time.perf_counter()
    with load(path, threads=int(threads), context=int(context), speculation=speculation, kv_type=kv_type or None,
              memory=memory[0] if memory else None, max_loss=float(max_loss)) as model:
        answers = _Answers(model, float(max_loss))
        serve(Measured(answers.decode, model.extend, answers.reset), time.perf_counter() - started)


if __name__ == "__main__":
    main()
