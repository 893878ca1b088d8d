"""Measures speed: medians of several alternating runs, each engine in a process of its own."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from edgert.errors import EdgertError, PeerError

DEFAULT_PROMPT = 'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n'
FIELDS = ("decode_tok_s", "prefill_tok_s", "first_token_s", "peak_rss_bytes")
_FEWER_IS_BETTER = {"first_token_s", "peak_rss_bytes"}


class EngineProcess:
    """A process that holds an engine and measures it (engine_process.py, peer.py)."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self._error = PeerError if module == "peer" else EdgertError
        # Not a pipe: nobody reads it before the end, and a full pipe would stop the process.
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen([sys.executable, "-P", "-m", f"edgert.measuring.{module}", *arguments],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        self.load_s: float = self._answer()["load_s"]

    def measure(self, prompt: Sequence[int], decode: int, prefill: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompt": list(prompt), "decode": decode, "prefill": prefill}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:] or ["it ended without a word"]
            raise self._error(last[0].rpartition("Error: ")[2])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def bench(bundle: str, prompt: Sequence[int], *, against: str | None, threads: int, runs: int, decode: int,
          prefill: int, memory: str | None = None,
          report: Callable[[str, int, dict[str, Any]], None] = lambda name, run, result: None) -> dict[str, Any]:
    """Median speeds of a bundle, and of llama.cpp on a GGUF file if one is given, in alternating runs.

    llama.cpp is measured with repacked and with memory-mapped weights. memory: the bundle's memory budget.
    Returns FIELDS, `load_s`, `threads` and `runs`. With `against` also `peer`, the better of llama.cpp's two results
    for each field; `peer.variants`, both results; and `ratio`, how many times better edgert is.
    Raises PeerError, EdgertError.
    """
    context = str(max(len(prompt) + decode, prefill) + 64)
    engines = {"edgert": ("engine_process", [bundle, str(threads), context, *([memory] if memory else [])])}
    if against is not None:
        for variant in ("repack", "mmap"):
            engines[variant] = ("peer", [against, str(threads), context, variant])
    processes: dict[str, EngineProcess] = {}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    try:
        for name, (module, arguments) in engines.items():
            processes[name] = EngineProcess(module, arguments)
        for run in range(-1, runs):  # one to warm up
            for name, process in processes.items():
                result = process.measure(prompt, decode, prefill)
                if run >= 0:
                    results[name].append(result)
                    report(name, run, result)
    finally:
        for process in processes.values():
            process.close()
    medians = {name: {"load_s": processes[name].load_s, **_medians(found)} for name, found in results.items()}
    answer: dict[str, Any] = {"bundle": bundle, "threads": threads, "runs": runs, "prompt_tokens": len(prompt),
                              "decode_tokens": decode, "prefill_tokens": prefill, "memory": memory,
                              **medians.pop("edgert")}
    if against is not None:
        best = {field: (min if field in _FEWER_IS_BETTER else max)(m[field] for m in medians.values() if field in m)
                for field in FIELDS if field in answer}
        answer["peer"] = {"name": "llama.cpp", "model": against, **best, "variants": medians}
        answer["ratio"] = {field: round(best[field] / answer[field] if field in _FEWER_IS_BETTER
                                        else answer[field] / best[field], 3) for field in best}
    return answer


def _medians(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {field: statistics.median(r[field] for r in results) for field in FIELDS if field in results[0]}
