"""Mixtures of experts under budgets: the same logits, how many experts are in memory when they are needed, bytes and
speed, with guesses of the next layer's experts and without.

    python tests/large/make_experts.py FOLDER
    python tests/large/experts.py FOLDER [--budgets 1060M,2120M] [--tokens 64] [--threads 2] [--variants guesses,none]

Tokens are given, a text that changes its topic now and then. Each run is a process of its own, under `limit-memory`
with a cold page cache. Progress goes to standard error, one JSON object to standard output; exit status 1 where logits
differ.
"""

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from budgets import UNLIMITED, child, say
from make_sparse import text

VARIANTS = {"guesses": {}, "none": {"_LEAST_RIGHT": 2.0}, "lru": {"HALF_LIFE": 0.5}, "lfu": {"HALF_LIFE": 1e6},
            "half-life 64": {"HALF_LIFE": 64.0}, "half-life 16": {"HALF_LIFE": 16.0}}
"""What of residency.experts is other. none: read nothing on a guess. lru, lfu: by time of use, or frequency, alone."""
_PROMPT, _WARM = 64, 32


def measured(bundle: str, memory: str | None, threads: int, tokens: int, variant: str) -> dict[str, Any]:
    """What the child does: a prompt, some tokens that warm the cache up, then `tokens` one at a time."""
    import edgert
    from edgert.residency import experts
    for name, value in VARIANTS[variant].items():
        setattr(experts, name, value)
    started = time.perf_counter()
    with edgert.load(bundle, memory=memory, threads=threads, context=512, speculation="off") as model:
        loaded = time.perf_counter()
        engine, session = model._engine, model._conversations.current
        ids = text(engine.config.vocab_size, _PROMPT + _WARM + tokens)
        engine.forward(session, ids[:_PROMPT])
        prompt = time.perf_counter()
        digest, times, before, counted = hashlib.sha256(), [], 0, {}
        for number, token in enumerate(ids[_PROMPT:]):
            if number == _WARM:
                before, counts = engine.source.reading.bytes, engine.source.reading.experts
                counted = {} if counts is None else asdict(counts)
            begun = time.perf_counter()
            digest.update(engine.forward(session, [token]).tobytes())
            times.append(time.perf_counter() - begun)
        found = {"tok_s": round(tokens / sum(times[_WARM:]), 2), "logits": digest.hexdigest(),
                 "load_s": round(loaded - started, 2), "prompt_s": round(prompt - loaded, 2),
                 "bytes_a_token": round((engine.source.reading.bytes - before) / tokens),
                 "planned_bytes_a_token": model.plan.streamed, "experts_bytes": model.plan.parts.get("experts")}
        if (counts := engine.source.reading.experts) is not None:
            now = {name: value - counted[name] for name, value in asdict(counts).items()}
            found |= {"hits": round(1 - now["missed"] / now["needed"], 3), **now}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budgets", type=lambda value: value.split(","), default=["1060M", "2120M"])
    parser.add_argument("--variants", type=lambda value: value.split(","), default=["guesses", "none"])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measured(*arguments.child)))
        return
    results: dict[str, Any] = {}
    for budget in [*arguments.budgets, UNLIMITED]:
        for variant in arguments.variants if budget != UNLIMITED else ["none"]:
            done = child(budget, [sys.executable, __file__, str(arguments.folder), "--child", json.dumps(
                [str(arguments.folder / "experts.edge"), None if budget == UNLIMITED else budget, arguments.threads,
                 arguments.tokens, variant])], 3600)
            if done.error:
                sys.exit(f"{variant}, {budget}: {done.error}")
            say(f"{variant}, {budget}: {done.output}, {done.kernel_says}")
            results[f"{budget}, {variant}"] = {**done.output, **done.kernel_says}
    same = len({result["logits"] for result in results.values()}) == 1
    print(json.dumps({"same_logits": same, **results}))
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
