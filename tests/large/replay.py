"""What speculation would bring a model whose drafts were right as often as another's: accepted lengths are replayed.

    python tests/large/replay.py BUNDLE LENGTHS.json --memory 2200M [--depth 6] [--rounds 8]

LENGTHS.json: how many drafts were right in each round, as a list of whole numbers, or {"agreement": 0.8}. Each round
drafts `depth` tokens, checks them all in one pass and keeps as many as were right there: random weights agree with
nothing, but bytes and times are those of a real model of their shape. Prints one JSON object.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import edgert
from edgert.engine.engine import NewTokens


def lengths_of(described: Any, depth: int, rounds: int) -> list[int]:
    """How many drafts are right in each round, never more than were drafted."""
    if isinstance(described, list):
        return [min(int(length), depth) for length in (described * rounds)[:rounds]]
    chance = random.Random(0)
    lengths = []
    for _ in range(rounds):
        right = 0
        while right < depth and chance.random() < described["agreement"]:
            right += 1
        lengths.append(right)
    return lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("lengths", type=Path)
    parser.add_argument("--memory")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    arguments = parser.parse_args()
    lengths = lengths_of(json.loads(arguments.lengths.read_text()), arguments.depth, arguments.rounds)
    with edgert.load(arguments.bundle, memory=arguments.memory, context=arguments.context) as model:
        engine, session = model._engine, model._conversations.current
        engine.forward(session, list(range(100, 116)))
        alone, drafts, checks, read, tokens, started = [], [], [], [], 0, 0.0
        for _ in range(4):  # the first fills the ring
            before = time.perf_counter()
            engine.forward(session, [100])
            alone.append(time.perf_counter() - before)
        started = time.perf_counter()
        for right in lengths:
            length, bytes_before = session.length, engine.source.reading.bytes
            guesses = [101]
            before = time.perf_counter()
            for _ in range(arguments.depth):
                guesses.append(int(engine.draft(session, guesses[-1]).argmax()))
            drafted = time.perf_counter()
            session.truncate(length)
            engine.verify([NewTokens(session, guesses)])[0]
            checks.append(time.perf_counter() - drafted)
            drafts.append((drafted - before) / arguments.depth)
            session.truncate(length + 1 + right)
            tokens += 1 + right
            read.append(engine.source.reading.bytes - bytes_before)
        seconds = time.perf_counter() - started
        print(json.dumps({
            "plan": model.plan.summary, "parts": model.plan.parts, "depth": arguments.depth, "lengths": lengths,
            "tok_s": round(tokens / seconds, 2), "plain_tok_s": round(1 / statistics.median(alone[1:]), 2),
            "draft_ms": round(1e3 * statistics.median(drafts), 2),
            "verify_ms": round(1e3 * statistics.median(checks), 1), "bytes_a_pass": int(statistics.median(read))}))


if __name__ == "__main__":
    main()
