#!/usr/bin/env python3
"""Models that are let go without `close`, and forks: every answer must be right, and nothing may be left over.

    tests/large/dropped.py smol.edge [--memory 120M] [--models 200] [--forks 50] [--seed 0]

Without --memory all of the model is in memory. Models are let go in turn by the end of a function, by a new one of the
same name, by the garbage collector, in the middle of an answer, and in another thread. One JSON line; exits with 1 if
anything was wrong.
"""

import argparse
import gc
import json
import os
import random
import sys
import threading
import time

import psutil

import edgert
from edgert.engine.worker import settle

PROMPTS = ["The capital of France is", "def add(a, b):\n    return", "Once upon a time there was a"]
TOKENS = 6


def answer(model: edgert.Model, prompt: str, count: int = TOKENS) -> list[int]:
    """The first tokens of an answer that is then left alone."""
    generation = model.generate(prompt, max_tokens=TOKENS, ignore_eos=True)
    for _ in range(count):
        next(generation)
    return generation.token_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--memory", "-m")
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--forks", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pick = random.Random(args.seed)

    def load() -> edgert.Model:
        return edgert.load(args.bundle, memory=args.memory, threads=pick.choice([1, 2, 3]), context=64)

    with load() as model:
        expected = {prompt: answer(model, prompt) for prompt in PROMPTS}
        streams = model.plan.disk is not None
    before = threading.active_count(), psutil.Process().num_fds()
    wrong = 0
    for number in range(args.models):
        way, prompt = number % 5, pick.choice(PROMPTS)
        model = load()
        count = pick.randrange(1, TOKENS) if way == 3 else TOKENS
        wrong += answer(model, prompt, count) != expected[prompt][:count]
        if way == 2:
            model.cycle = model  # type: ignore[attr-defined]
        if way == 4:
            box = [model]
            del model
            thread = threading.Thread(target=box.clear)
            thread.start()
            thread.join()
        elif way != 1 or args.memory:  # the next one replaces it; in a budget there is no room for two
            del model
        if way == 2:
            gc.collect()
    model = load()
    refused = 0
    for _ in range(args.forks):
        if not (child := os.fork()):
            try:
                answer(model, PROMPTS[0])
            except edgert.ModelError as error:
                os._exit(0 if "after forking" in str(error) else 2)
            os._exit(1)
        refused += os.waitpid(child, 0)[1] == 0
        wrong += answer(model, PROMPTS[0]) != expected[PROMPTS[0]]
    model.close()
    del model
    gc.collect()
    settle()
    time.sleep(0.1)
    after = threading.active_count(), psutil.Process().num_fds()
    print(json.dumps({"streams": streams, "models": args.models, "wrong": wrong, "forks": args.forks,
                      "forks_told": refused, "threads_descriptors_before": before, "after": after}))
    sys.exit(bool(wrong) or refused != args.forks or before != after)


if __name__ == "__main__":
    main()
