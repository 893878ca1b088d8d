"""The acceptance run: the same answer at every budget, held by the kernel, and how fast, beside llama.cpp.

    python tests/large/budgets.py BUNDLE MODEL.gguf [--part identity] [--part speed] [--budgets 500M,600M,800M,1000M]
        [--tokens 256] [--runs 5] [--threads 1,2] [--prompt TEXT ...]

Needs root (the memory limit is a control group's), Linux, and the project's shared tools: ../shared/tools or
$EDGERT_TOOLS. Every run is a process of its own under `limit-memory`, and begins with a cold page cache where that is
permitted. Progress goes to standard error, one JSON object to standard output; exit status 1 where part identity fails.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgert.residency.device import probe
from edgert.sizes import parse_size

TOOLS = Path(os.environ.get("EDGERT_TOOLS") or Path(__file__).resolve().parents[3] / "shared/tools")
UNLIMITED = "unlimited"
PROMPTS = (
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "The three most important things to know about memory are",
    "SELECT name, COUNT(*) FROM orders WHERE",
)


@dataclass(frozen=True)
class Settings:
    bundle: str
    gguf: str
    budgets: list[str]
    threads: list[int]
    prompts: Sequence[str]
    tokens: int
    llama_tokens: int
    runs: int
    context: int
    timeout: int


@dataclass(frozen=True)
class Run:
    """What a child did. output: its JSON. limit: limit-memory's JSON, empty where there was no limit."""

    output: dict[str, Any]
    limit: dict[str, Any]
    seconds: float
    error: str | None

    @property
    def kernel_says(self) -> dict[str, Any]:
        return {key: self.limit.get(key) for key in ("peak_bytes", "limit_hits", "oom_kills")}


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def drop_caches() -> bool:
    """Empties the page cache; whether that was permitted."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True


def child(budget: str, command: Sequence[str], timeout: int) -> Run:
    """Runs a command under a budget, with a cold page cache."""
    drop_caches()
    limited = [] if budget == UNLIMITED else [str(TOOLS / "limit-memory"), budget]
    # `timeout` ends the command and not limit-memory, which then removes its control group.
    whole = [*limited, "timeout", "--foreground", "-k", "10", str(timeout), *command]
    started = time.perf_counter()
    done = subprocess.run(whole, capture_output=True, text=True)
    seconds = round(time.perf_counter() - started, 1)
    lines = done.stderr.strip().splitlines()
    limit = last_json(lines) if limited else {}
    output = last_json(done.stdout.splitlines())
    error = None
    if done.returncode or not output:
        said = [line for line in lines if not line.startswith('{"limit"')]
        error = f"exit {done.returncode}: {said[-1] if said else 'nothing was said'}"
    return Run(output, limit, seconds, error)


def last_json(lines: Sequence[str]) -> dict[str, Any]:
    for line in reversed(lines):
        if line.startswith("{"):
            return dict(json.loads(line))
    return {}


def run_edgert(settings: Settings, budget: str, threads: int, prompt: str) -> Run:
    memory = [] if budget == UNLIMITED else ["--memory", budget]
    return child(budget, [sys.executable, "-P", "-m", "edgert", "run", settings.bundle, "-p", prompt, "-n",
                          str(settings.tokens), "-t", str(threads), "-c", str(settings.context), "--json",
                          "--ignore-eos", *memory], settings.timeout)


def run_llama(settings: Settings, budget: str, threads: int, prompt: str) -> Run:
    return child(budget, [sys.executable, str(TOOLS / "llamacpp-baseline"), settings.gguf, "--no-repack", "--tokens",
                          str(settings.llama_tokens), "--threads", str(threads), "--context", str(settings.context),
                          "--prompt", prompt], settings.timeout)


def identity(settings: Settings) -> dict[str, Any]:
    """Part A: token ids at every budget and number of threads; those without a budget, on one thread, are the truth."""
    runs, faults, truth = [], [], {}
    for number, prompt in enumerate(settings.prompts):
        for budget in (UNLIMITED, *settings.budgets):
            for threads in settings.threads:
                run = run_edgert(settings, budget, threads, prompt)
                where = f"prompt {number}, {budget}, {threads} threads"
                ids = run.output.get("token_ids")
                wrong = list(faults_of(run, budget))
                if ids is not None and ids != truth.setdefault(number, ids):
                    same = next((i for i, pair in enumerate(zip(ids, truth[number], strict=False)) if len({*pair}) > 1),
                                min(len(ids), len(truth[number])))
                    wrong.append(f"the answer differs from token {same} on")
                faults += [f"{where}: {what}" for what in wrong]
                flash = run.output.get("flash", {})
                runs.append({"prompt": number, "budget": budget, "threads": threads, "seconds": run.seconds,
                             "tokens": len(ids or ()), "decode_tok_s": run.output.get("decode_tok_s"),
                             "pinned_share": flash.get("pinned_share"), **run.kernel_says, "faults": wrong})
                say(f"identity, {where}: {'; '.join(wrong) or 'same'}, {run.output.get('decode_tok_s')} tok/s, "
                    f"peak {run.limit.get('peak_bytes')}, {run.seconds} s")
    kinds = {number: len(set(ids)) for number, ids in truth.items()}
    return {"ok": not faults, "faults": faults, "different_tokens": kinds, "runs": runs}


def faults_of(run: Run, budget: str) -> list[str]:
    """What is wrong with a run but its tokens."""
    faults = [run.error] if run.error else []
    if budget != UNLIMITED:
        if run.limit.get("oom_kills") != 0:
            faults.append(f"oom_kills: {run.limit.get('oom_kills')}")
        if not 0 < run.limit.get("peak_bytes", 0) <= parse_size(budget):
            faults.append(f"peak {run.limit.get('peak_bytes')} of {parse_size(budget)} bytes")
    return faults


def speed(settings: Settings) -> dict[str, Any]:
    """Part B: decoding in turn with llama.cpp, first prompt, most threads; and how near the disk's own pace it is."""
    threads, prompt = max(settings.threads), settings.prompts[0]
    table = []
    for budget in settings.budgets:
        ours, theirs = [], []
        for number in range(settings.runs):
            for turn in (ours_run, theirs_run) if number % 2 == 0 else (theirs_run, ours_run):
                entry = turn(settings, budget, threads, prompt)
                (ours if turn is ours_run else theirs).append(entry)
                say(f"speed, {budget}, run {number + 1}, {json.dumps(entry)}")
        table.append({"budget": budget, **summary(ours, theirs), "edgert": ours, "llama.cpp": theirs})
        say(f"speed, {budget}: {json.dumps(summary(ours, theirs))}")
    return {"threads": threads, "budgets": table}


def ours_run(settings: Settings, budget: str, threads: int, prompt: str) -> dict[str, Any]:
    before = probe(settings.bundle).bandwidth
    run = run_edgert(settings, budget, threads, prompt)
    after = probe(settings.bundle).bandwidth
    flash = run.output.get("flash")
    entry = {"who": "edgert", "decode_tok_s": run.output.get("decode_tok_s"), "seconds": run.seconds,
             "first_token_s": run.output.get("first_token_s"), "error": run.error, **run.kernel_says,
             "probed_before": round(before), "probed_after": round(after), "flash": flash}
    if flash and flash["bandwidth"]:
        # Time per token is bytes per token by the bandwidth of the run; over bytes per token by the disk's best:
        entry["over_disk_time"] = round(max(before, after) / flash["bandwidth"], 3)
    return entry


def theirs_run(settings: Settings, budget: str, threads: int, prompt: str) -> dict[str, Any]:
    run = run_llama(settings, budget, threads, prompt)
    return {"who": "llama.cpp", "decode_tok_s": run.output.get("decode_tok_s"), "seconds": run.seconds,
            "first_token_s": run.output.get("first_token_s"), "error": run.error, **run.kernel_says}


def summary(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the runs."""
    edgert, llama = median(ours, "decode_tok_s"), median(theirs, "decode_tok_s")
    flashes = [entry["flash"] for entry in ours if entry.get("flash")]
    return {"edgert_tok_s": edgert, "llama_tok_s": llama,
            "ratio": round(edgert / llama, 3) if edgert and llama else None,
            "over_disk_time": median(ours, "over_disk_time"),
            **{name: median(flashes, name) for name in ("bytes_per_token", "bandwidth", "wait_share")}}


def median(entries: list[dict[str, Any]], name: str) -> float | None:
    values = [entry[name] for entry in entries if entry.get(name) is not None]
    return statistics.median(values) if values else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("gguf", help="the file that the bundle was made from, for llama.cpp")
    parser.add_argument("--part", choices=("identity", "speed"), action="append", help="may be given twice; both")
    parser.add_argument("--budgets", default="500M,600M,800M,1000M")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--prompt", action="append", help="may be given several times; three of its own")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--llama-tokens", type=int, default=24)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--timeout", type=int, default=3600, help="seconds for a run")
    args = parser.parse_args()
    settings = Settings(args.bundle, args.gguf, args.budgets.split(","), [int(n) for n in args.threads.split(",")],
                        args.prompt or PROMPTS, args.tokens, args.llama_tokens, args.runs, args.context, args.timeout)
    result: dict[str, Any] = {"bundle": settings.bundle, "tokens": settings.tokens, "cold": drop_caches()}
    for part in args.part or ("identity", "speed"):
        result[part] = {"identity": identity, "speed": speed}[part](settings)
    print(json.dumps(result))
    sys.exit(0 if result.get("identity", {"ok": True})["ok"] else 1)


if __name__ == "__main__":
    main()
