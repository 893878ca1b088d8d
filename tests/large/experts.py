"""Mixtures of experts under budgets: the same logits, how many experts are in memory when they are needed, bytes and
speed, with guesses of the next layer's experts and without, beside llama.cpp with the same weights, memory-mapped.

    python tests/large/make_experts.py FOLDER
    python tests/large/experts.py FOLDER [--budgets 1060M,2120M] [--prompt 64] [--warm 32] [--tokens 64] [--threads 2]
        [--variants guesses,none,llama.cpp,max-loss:3] [--runs 1] [--no-truth]

Tokens are given, a text that changes its topic now and then: a prompt, some that warm the cache up, then `tokens`
that are measured, one at a time. Each run is a process of its own, under `limit-memory` with a cold page cache;
variants take turns. Then, unless --no-truth, comes a run without a limit, whose logits are the truth. Progress goes to
standard error, one JSON object to standard output, with all runs, and medians; exit status 1 where logits differ. A
variant max-loss:PERCENT leaves out experts, and has logits of its own.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from budgets import UNLIMITED, child, say
from make_sparse import text

PEER, LEFT_OUT = "llama.cpp", "max-loss"
VARIANTS: dict[str, dict[str, float]] = {
    "guesses": {}, "none": {"_LEAST_RIGHT": 2.0}, "lru": {"HALF_LIFE": 0.5}, "lfu": {"HALF_LIFE": 1e6},
    "lru alone": {"HALF_LIFE": 0.5, "_LEAST_RIGHT": 2.0},
    "half-life 64": {"HALF_LIFE": 64.0}, "half-life 16": {"HALF_LIFE": 16.0}}
"""What of residency.experts is other. none, lru alone: read nothing on a guess. lru, lfu: by time of use, or frequency,
alone."""


@dataclass(frozen=True)
class Work:
    """What a child does, in so many tokens, and with what."""

    folder: str
    memory: str | None
    threads: int
    variant: str
    prompt: int
    warm: int
    tokens: int


def measured(work: Work) -> dict[str, Any]:
    """Of edgert."""
    import edgert
    from edgert.residency import experts
    for name, value in VARIANTS.get(work.variant, {}).items():
        setattr(experts, name, value)
    started = time.perf_counter()
    with edgert.load(f"{work.folder}/experts.edge", memory=work.memory, threads=work.threads, context=512,
                     speculation="off", max_loss=loss_of(work.variant)) as model:
        loaded = time.perf_counter()
        engine, session = model._engine, model._conversations.current
        before: list[tuple[int, dict[str, int]]] = []

        def warmed() -> None:
            counts = engine.source.reading.experts
            before.append((engine.source.reading.bytes, {} if counts is None else asdict(counts)))
            engine.routing.counts[:] = 0

        found = timed(work, engine.config.vocab_size, lambda ids: engine.forward(session, ids), warmed)
        ((read, counted),) = before
        found |= {"load_s": round(loaded - started, 2),
                  "bytes_a_token": round((engine.source.reading.bytes - read) / work.tokens),
                  "planned_bytes_a_token": model.plan.streamed, "experts_bytes": model.plan.parts.get("experts")}
        if model.left_out is not None:
            found |= {"left_out": model.left_out._asdict(), "experts_a_token": round(model.experts_per_token or 0, 3)}
        if (counts := engine.source.reading.experts) is not None:
            now = {name: value - counted[name] for name, value in asdict(counts).items()}
            found |= {"hits": round(1 - now["missed"] / now["needed"], 3),
                      "right_share": round(now["right"] / now["guessed"], 3) if now["guessed"] else None, **now}
        return found


def loss_of(variant: str) -> float:
    name, _, percent = variant.partition(":")
    return float(percent) / 100 if name == LEFT_OUT else 0.0


def measured_peer(work: Work) -> dict[str, Any]:
    """Of llama.cpp."""
    from edgert.measuring.peer import Peer
    peer = Peer(f"{work.folder}/experts.gguf", threads=work.threads, context=512, repack=False)
    return timed(work, peer.vocab_size, peer.forward, lambda: None)


def timed(work: Work, vocabulary: int, forward: Callable[[list[int]], np.ndarray],
          warmed: Callable[[], None]) -> dict[str, Any]:
    """Seconds of the prompt, tokens a second, and a digest of the logits. warmed: called before what is measured."""
    ids = text(vocabulary, work.prompt + work.warm + work.tokens)
    begun = time.perf_counter()
    forward(ids[:work.prompt])
    prompt_s, digest, seconds = time.perf_counter() - begun, hashlib.sha256(), 0.0
    for number, token in enumerate(ids[work.prompt:]):
        if number == work.warm:
            warmed()
        begun = time.perf_counter()
        digest.update(forward([token]).tobytes())
        seconds += (time.perf_counter() - begun) * (number >= work.warm)
    return {"tok_s": round(work.tokens / seconds, 3), "prompt_s": round(prompt_s, 2), "logits": digest.hexdigest()}


def run(budget: str, work: Work) -> dict[str, Any]:
    """In a child, within the budget."""
    done = child(budget, [sys.executable, __file__, work.folder, "--child", json.dumps(asdict(work))], 3600)
    if done.error:
        sys.exit(f"{work.variant}, {budget}: {done.error}")
    say(f"{work.variant}, {budget}: {done.output}, {done.kernel_says}")
    return {**done.output, **done.kernel_says}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--budgets", type=lambda value: value.split(","), default=["1060M", "2120M"])
    parser.add_argument("--variants", type=lambda value: value.split(","), default=["guesses", "none"])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--warm", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--no-truth", action="store_true")
    parser.add_argument("--child", type=lambda value: Work(**json.loads(value)), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps((measured_peer if arguments.child.variant == PEER else measured)(arguments.child)))
        return

    def work(memory: str | None, variant: str) -> Work:
        return Work(arguments.folder, memory, arguments.threads, variant, arguments.prompt, arguments.warm,
                    arguments.tokens)

    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.runs):
        for budget in arguments.budgets:
            for variant in arguments.variants:
                runs.setdefault(f"{budget}, {variant}", []).append(run(budget, work(budget, variant)))
    if not arguments.no_truth:
        runs[UNLIMITED] = [run(UNLIMITED, work(None, "none"))]
    medians = {name: statistics.median(each["tok_s"] for each in some) for name, some in runs.items()}
    logits: dict[float, set[str]] = {}
    for name, some in runs.items():
        if PEER not in name:
            logits.setdefault(loss_of(name.split(", ")[-1]), set()).update(each["logits"] for each in some)
    same = all(len(of_one_mode) == 1 for of_one_mode in logits.values())
    print(json.dumps({"same_logits": same, "tok_s": medians, "runs": runs}))
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
