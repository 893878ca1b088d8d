"""Runs what the README shows, on this machine, and writes the README's figures from it (readme_text.py).

    make readme-figures ARGS="[--gguf Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf] [--work FOLDER] [--runs 5] [--tokens 64]
        [--llama-tokens 12] [--print]"

Some ten minutes on a machine that does nothing else. Needs what budgets.py needs: root, Linux, the shared tools, and
llama-cpp-python. Every command begins with a cold page cache and, given --memory, runs under `limit-memory`. FOLDER, by
default a temporary one, holds the models: its disk is the one that is measured. With --print the README goes to
standard output and nothing is written. Exit status 1 where the figures contradict each other.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import budgets
import psutil
from readme_text import README, RECORD, REPOSITORY, Record, commands, disagreements, render

from edgert.download import pull
from edgert.kernels import native

MODEL = "qwen2.5-coder-1.5b"
GGUF, BUNDLE, TEXT = "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf", f"{MODEL}.edge", "docs.txt"
"""What the README's commands call the reference model, its bundle, and this repository's docs in one file."""
LIMITS = ("600M", "800M")


def prepare(work: Path, gguf: Path, small: Path) -> None:
    """Everything that the README's commands find: a home with a fetched model and compiled kernels, models, a text."""
    cache = work / "home" / ".cache" / "edgert"
    (cache / "models").mkdir(parents=True)
    (cache / "models" / small.name).symlink_to(small.resolve())
    (cache / "kernels").symlink_to(native.cache_folder())
    (work / GGUF).symlink_to(gguf.resolve())
    (work / TEXT).write_text("\n".join(path.read_text() for path in sorted((REPOSITORY / "docs").rglob("*.md"))))
    for name in ("XDG_CACHE_HOME", "EDGERT_CACHE", "EDGERT_MODELS", "EDGERT_SIMD"):
        os.environ.pop(name, None)
    os.environ.update(HOME=str(work / "home"), COLUMNS="100",
                      PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    os.chdir(work)


def output_of(command: str) -> str:
    """What a command of the README shows, with the word about its memory, if there is one."""
    budgets.drop_caches()
    limit = re.search(r"edgert run .*--memory (\w+)", command)
    limited = [str(budgets.TOOLS / "limit-memory"), limit[1]] if limit else []
    started = time.perf_counter()
    done = subprocess.run([*limited, "bash", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          check=False)
    if done.returncode:
        sys.exit(f"{command}: exit status {done.returncode}: {done.stderr.strip()}")
    budgets.say(f"{command}: {time.perf_counter() - started:.1f} s")
    said = [line + "\n" for line in done.stderr.splitlines() if line.startswith("memory: ")]
    text = "".join([*said, done.stdout]).replace(str(Path.home()), "~")
    text = re.sub(r"(Linux-\d+\.\d+)\S*?(-[a-z0-9]+_?64-)", r"\1\2", text)  # a kernel's build is nobody's business
    return re.sub(r" +$", "", text, flags=re.MULTILINE).rstrip("\n") + "\n"


def examples(wanted: list[str]) -> dict[str, str]:
    """The output of each command; first that which measures the disk, so that the others go by that measurement."""
    order = sorted(wanted, key=lambda command: not command.startswith("edgert doctor "))
    found = {command: output_of(command) for command in order}
    return {command: found[command] for command in wanted}


def machine() -> dict[str, Any]:
    """What the figures were measured on; the disk as `edgert doctor BUNDLE` measured it."""
    facts = json.loads(output_of("edgert doctor --json"))
    (disk,) = facts["flash"]
    return {"processor": facts["processor"], "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1), "disk": disk["name"],
            "disk_gb_s": round(disk["bandwidth"] / 1e9, 2)}


def limits(settings: budgets.Settings) -> list[dict[str, Any]]:
    """Tokens/s of each run under each limit, edgert and llama.cpp in turn."""
    rows: list[dict[str, Any]] = [{"limit": limit, "edgert": [], "llama.cpp": []} for limit in settings.budgets]
    turns = [("edgert", budgets.run_edgert), ("llama.cpp", budgets.run_llama)]
    for number in range(settings.runs):
        for row in rows:
            for who, turn in turns if number % 2 == 0 else turns[::-1]:
                run = turn(settings, row["limit"], settings.threads[0], settings.prompts[0])
                if faults := budgets.faults_of(run, row["limit"]):
                    sys.exit(f"{who} under {row['limit']}: {'; '.join(faults)}")
                row[who].append(run.output["decode_tok_s"])
                budgets.say(f"run {number + 1}, {row['limit']}, {who}: {row[who][-1]} tok/s, {run.seconds} s")
    return rows


def measure(wanted: list[str], args: argparse.Namespace) -> Record:
    """Everything that a README with such commands needs."""
    output_of(f"edgert convert {GGUF} {BUNDLE}")
    settings = budgets.Settings(
        bundle=BUNDLE, gguf=GGUF, budgets=list(LIMITS), threads=[psutil.cpu_count(logical=False) or 1],
        prompts=budgets.PROMPTS[:1], tokens=args.tokens, llama_tokens=args.llama_tokens, runs=args.runs, context=1024,
        timeout=600)
    shown = examples(wanted)
    return {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "runs": args.runs,
            "bundle_bytes": Path(BUNDLE).stat().st_size, "limits": limits(settings), "examples": shown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="the model, by default the catalogue's, fetched if need be")
    parser.add_argument("--work", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--llama-tokens", type=int, default=12)
    parser.add_argument("--print", action="store_true", dest="only_print")
    args = parser.parse_args()
    if os.geteuid() or not (budgets.TOOLS / "limit-memory").exists():
        sys.exit(f"a memory limit needs root, and limit-memory in {budgets.TOOLS} (or where $EDGERT_TOOLS says)")
    gguf, small = args.gguf or pull(MODEL), pull("smollm2-135m")
    native.library()
    load = os.getloadavg()[0]
    budgets.say(f"load {load:.1f}: on a quiet machine it is below 1")
    readme = README.read_text()
    with tempfile.TemporaryDirectory(prefix="edgert-readme-", dir=args.work) as work:
        prepare(Path(work), gguf, small)
        record = {"load": load, **measure(commands(readme), args)}
        os.chdir(REPOSITORY)
    readme = render(readme, record)
    if args.only_print:
        print(readme)
    else:
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        README.write_text(readme)
    faults = disagreements(record)
    for fault in faults:
        budgets.say(fault)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
