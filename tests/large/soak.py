"""Generates thousands of tokens in one process, and watches that it takes no more and leaves nothing behind.

    limit-memory 600M python tests/large/soak.py BUNDLE --memory 600M [--tokens 5000] [--context N] [--threads N]

Conversations of random tokens: each turn goes on from the ones before, some are broken off, now and then all is
forgotten. Prints one JSON object. Exit status 1 where, after the first 200 tokens, resident memory has grown by more
than 2 MB or threads or descriptors have grown at all, or where closing the model leaves threads or memory behind.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import edgert

EVERY, WARM = 100, 200
"""Tokens between samples, and before the first that counts."""
MOST_GROWTH = 2_000_000
PROCESS = psutil.Process()
Sample = dict[str, int]


def sample() -> Sample:
    """What the process takes now."""
    return {"rss_bytes": PROCESS.memory_info().rss, "threads": PROCESS.num_threads(), "descriptors": PROCESS.num_fds()}


def left_threads() -> list[str]:
    """Names of threads of edgert that are still there, to Python or to the kernel."""
    names = {thread.name for thread in threading.enumerate()}
    tasks = Path("/proc/self/task")
    if tasks.is_dir():
        names.update(path.read_text().strip() for path in tasks.glob("*/comm"))
    return sorted(name for name in names if name.startswith("edgert-"))


def answers(model: edgert.Model, random: np.random.Generator) -> Iterator[edgert.Generation]:
    """Answers without end, in conversations that grow turn by turn; greedy, sampled and with log-probabilities."""
    vocabulary = model.header.config.vocab_size
    conversation: list[int] = []
    opening = random.integers(vocabulary, size=min(24, model.context // 8)).tolist()
    while True:
        if random.random() < 0.15:
            model.reset()
            conversation = []
        turn = random.integers(vocabulary, size=random.integers(4, 17)).tolist()
        length = int(random.integers(10, 81))
        if len(conversation) + len(turn) + length > model.context:
            conversation = []  # goes on from what all conversations begin with
        prompt = (conversation or opening) + turn
        room = model.context - len(prompt) + 1
        answer = model.generate(prompt, max_tokens=min(length, room), ignore_eos=True, seed=int(random.integers(1000)),
                                temperature=float(random.choice((0, 0.8))), logprobs=random.choice((None, 5)))
        yield answer
        conversation = prompt + answer.token_ids


def generate(model: edgert.Model, tokens: int, random: np.random.Generator) -> tuple[list[Sample], dict[str, Any]]:
    """Samples, and how it went."""
    samples, done, count, read, forgotten = [], 0, 0, 0, 0
    started = time.perf_counter()
    for answer in answers(model, random):
        if done == tokens:
            break
        count += 1
        broken_off = int(random.integers(1, 10)) if random.random() < 0.15 else None
        for piece in islice(answer, broken_off):
            if piece.token_id is None:
                continue
            done += 1
            if done % EVERY == 0 and done >= WARM:
                samples.append(sample())
                print(f"{done} tokens, {samples[-1]}", file=sys.stderr, flush=True)
            if done == tokens:
                break
        answer.close()
        forgotten += answer.statistics.prompt_computed == answer.statistics.prompt_tokens
        read += answer.statistics.flash_bytes + answer.statistics.flash_bytes_prompt
    seconds = time.perf_counter() - started
    return samples, {"tokens": done, "answers": count, "from_nothing": forgotten, "seconds": round(seconds, 1),
                     "tok_s": round(done / seconds, 2), "read_bytes": read}


def soak(bundle: str, memory: str | None, tokens: int, context: int | None, threads: int | None,
         seed: int) -> dict[str, Any]:
    """Everything that is printed; `faults` says what is wrong."""
    before = sample()
    model = edgert.load(bundle, memory=memory, context=context, threads=threads)
    plan = model.plan
    samples, result = generate(model, tokens, np.random.default_rng(seed))
    result.update(budget=plan.budget, streamed_bytes=plan.streamed, streams=plan.disk is not None)
    faults = [] if samples else [f"{tokens} tokens are too few: the first sample is taken after {WARM}"]
    for name, most in (("rss_bytes", MOST_GROWTH), ("threads", 0), ("descriptors", 0)):
        values = [each[name] for each in samples] or [0]
        result[name] = {"before": before[name], "first": values[0], "last": values[-1], "max": max(values)}
        if values[-1] - values[0] > most:
            faults.append(f"{name} grew from {values[0]} to {values[-1]}")
    last = sample()
    model.close()
    closed = sample()
    for name in ("rss_bytes", "threads", "descriptors"):
        result[name]["closed"] = closed[name]
    # What stays is what was there before the plan was made: the interpreter, its modules, the compiled kernels.
    held = sum(size for part, size in plan.parts.items() if part == "norms and biases" or part.startswith("pinned "))
    result["given_back_bytes"], result["held_bytes"] = last["rss_bytes"] - closed["rss_bytes"], held
    if result["given_back_bytes"] < held:
        faults.append(f"closing gave back {result['given_back_bytes']} bytes; weights alone held {held}")
    if names := left_threads():
        faults.append(f"closing left the threads {', '.join(names)}")
    if closed["descriptors"] > before["descriptors"] or closed["threads"] > before["threads"]:
        faults.append(f"closing left threads or descriptors: {closed}, before loading {before}")
    return {**result, "faults": faults}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--memory", "-m", help="as 600M; by default what is free")
    parser.add_argument("--tokens", "-n", type=int, default=5000)
    parser.add_argument("--context", "-c", type=int)
    parser.add_argument("--threads", "-t", type=int)
    parser.add_argument("--seed", type=int, default=0)
    result = soak(**vars(parser.parse_args()))
    print(json.dumps(result))
    sys.exit(1 if result["faults"] else 0)


if __name__ == "__main__":
    main()
