#!/usr/bin/env python3
"""Bursts of Ctrl-C at a model that streams from a slow disk: every answer must be right, and the model stay usable.

    tests/large/bursts.py smol.edge --budgets 105M,120M,135M --bursts 2000 [--disk 40M] [--seed 0]

For each budget a process streams the model inside a control group whose disk the kernel throttles (needs root; --disk 0
does without). Bursts come in gestures: an answer is interrupted, the next one 3 to 100 milliseconds after it began, by
one signal or by ten, and perhaps a third; then an answer must come whole. Every answer that comes must be the one that
the model gives when all of it is in memory. One JSON line for each budget; exits with 1 if anything was wrong.
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import edgert
from edgert.residency.device import device_of
from edgert.sizes import parse_size

PROMPTS = ["The capital of France is", "def add(a, b):\n    return", "Once upon a time there was a"]
TOKENS = 2


def answer(model: edgert.Model, prompt: str) -> list[int]:
    generation = model.generate(prompt, max_tokens=TOKENS, ignore_eos=True)
    generation.text()
    return generation.token_ids


class Signaller:
    """A thread that sends this process SIGINT, as often and with such gaps (seconds) as it is told."""

    def __init__(self) -> None:
        self.sent = 0
        self.bursts: SimpleQueue[list[float] | threading.Event] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            burst = self.bursts.get()
            if isinstance(burst, threading.Event):
                burst.set()
                continue
            for gap in burst:
                time.sleep(gap)
                os.kill(os.getpid(), signal.SIGINT)
                self.sent += 1


def gesture(pick: random.Random) -> list[list[float]]:
    """Bursts, one for each answer that is to be interrupted; in each the gaps before its signals."""
    def burst(first: float) -> list[float]:
        return [first, *pick.choice([[], [], [pick.uniform(0, 0.001) for _ in range(9)],
                                     [pick.uniform(0, 0.01) for _ in range(9)], [pick.uniform(0.003, 0.1)]])]

    return [burst(pick.uniform(0, 0.4)), *[burst(pick.uniform(0.003, 0.1)) for _ in range(pick.choice([1, 1, 2]))]]


def trial(model: edgert.Model, signaller: Signaller, bursts: list[list[float]], prompts: Iterator[int],
          right: list[list[int]]) -> int:
    """A gesture and the answer after it; how many answers were wrong."""
    def wrong() -> int:
        number = next(prompts)
        return answer(model, PROMPTS[number]) != right[number]

    count, begun, over = 0, 0, [threading.Event() for _ in bursts]
    while True:
        try:
            while begun < len(bursts):
                begun += 1
                signaller.bursts.put(bursts[begun - 1])
                signaller.bursts.put(over[begun - 1])
                while not over[begun - 1].is_set():
                    count += wrong()
            while not over[-1].is_set():
                time.sleep(0.001)
            time.sleep(0.01)
            break
        except KeyboardInterrupt:
            continue
    return count + wrong()


def child(bundle: str, memory: str, bursts: int, seed: int, right: list[list[int]]) -> dict[str, Any]:
    """All bursts of one budget."""
    model = edgert.load(bundle, memory=memory, threads=2, context=128)
    assert model.plan.disk is not None, f"{memory} holds all of the model"
    pick, signaller, prompts = random.Random(f"{seed} {memory}"), Signaller(), itertools.cycle(range(len(PROMPTS)))
    done, wrong, error = 0, 0, None
    while done < bursts and error is None:
        planned = gesture(pick)
        done += len(planned)
        try:
            wrong += trial(model, signaller, planned, prompts, right)
        except edgert.EdgertError as raised:
            error = str(raised)
    return {"memory": memory, "streamed_bytes": model.plan.streamed, "bursts": done, "signals": signaller.sent,
            "wrong": wrong, "error": error, "read_again": model.read_again}


@contextmanager
def throttled(name: str, folder: Path, rate: int) -> Iterator[list[str]]:
    """A command prefix whose process reads the disk of `folder` at so many bytes a second."""
    if not rate:
        yield []
        return
    number = folder.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    v1 = Path("/sys/fs/cgroup/blkio")
    group = (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / f"edgert-{name}-{os.getpid()}"
    group.mkdir()
    try:
        if v1.is_dir():
            (group / "blkio.throttle.read_bps_device").write_text(f"{device} {rate}")
        else:
            (group.parent / "cgroup.subtree_control").write_text("+io")
            (group / "io.max").write_text(f"{device} rbps={rate}")
        yield ["sh", "-c", f"echo $$ > {group}/cgroup.procs; exec \"$@\"", "sh"]
    finally:
        for _ in range(50):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--budgets", default="105M,120M,135M")
    parser.add_argument("--bursts", type=int, default=2000, help="of all budgets together")
    parser.add_argument("--disk", default="40M", help="bytes a second, 0 for as fast as it is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--right", help=argparse.SUPPRESS)
    args = parser.parse_args()
    budgets = args.budgets.split(",")
    if args.right is not None:
        print(json.dumps(child(args.bundle, args.budgets, args.bursts, args.seed, json.loads(args.right))))
        return
    device_of(args.bundle)  # measured before it is throttled
    with edgert.load(args.bundle, threads=2, context=128) as model:
        right = json.dumps([answer(model, prompt) for prompt in PROMPTS])

    def run(memory: str) -> bool:
        with throttled(memory, Path(args.bundle).resolve().parent, parse_size(args.disk)) as prefix:
            done = subprocess.run(
                [*prefix, sys.executable, "-P", __file__, args.bundle, "--budgets", memory, "--seed", str(args.seed),
                 "--bursts", str(args.bursts // len(budgets)), "--right", right], stdout=subprocess.PIPE, text=True,
                check=False)
        print(done.stdout.strip() or json.dumps({"memory": memory, "error": f"ended with {done.returncode}"}),
              flush=True)
        result = json.loads(done.stdout or '{"error": "ended", "wrong": 0}')
        return done.returncode == 0 and result["error"] is None and not result["wrong"]

    with ThreadPoolExecutor(len(budgets)) as pool:
        sys.exit(0 if all(list(pool.map(run, budgets))) else 1)


if __name__ == "__main__":
    main()
