"""Measures speed: medians of several alternating runs, each engine in a process of its own."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgert.errors import EdgertError, PeerError
from edgert.speculation.speculator import AUTO, OFF

from .child import Child

DEFAULT_PROMPT = 'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n'
FIELDS = ("decode_tok_s", "prefill_tok_s", "first_token_s", "peak_rss_bytes")
VARIANTS = ("repack", "mmap", "repack, no flash attention", "mmap, no flash attention")
"""Ways in which llama.cpp is measured (peer.py)."""
NO_SPECULATION = "edgert, no speculation"
"""The bundle again, in the same budget but a token a pass."""
NO_LOSS = "edgert, no loss"
"""The bundle again, in the same budget, as exact as it is."""
_FEWER_IS_BETTER = {"first_token_s", "peak_rss_bytes"}


class EngineProcess(Child):
    """A process that holds an engine and measures it (engine_process.py, peer.py)."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self.error = PeerError if module == "peer" else EdgertError
        super().__init__(module, arguments)
        self.load_s: float = self.answer()["load_s"]

    def measure(self, prompt: Sequence[int], decode: int, prefill: int, *, go_on: bool = False) -> dict[str, Any]:
        """What engine_process.measure returns."""
        return self.ask({"prompt": list(prompt), "decode": decode, "prefill": prefill, "go_on": go_on})


def bench(bundle: str, prompt: Sequence[int], *, against: str | None, threads: int, runs: int, decode: int,
          prefill: int, context: int | None = None, memory: str | None = None, kv_type: str | None = None,
          max_loss: float = 0.0,
          report: Callable[[str, int, dict[str, Any]], None] = lambda name, run, result: None) -> dict[str, Any]:
    """Median speeds of a bundle, and of llama.cpp on a GGUF file if one is given, in alternating runs.

    context: decode after so many tokens, the prompt repeated; they are computed in each run, and are the prefill that
    is measured, or, where `prefill` is 0, once. llama.cpp is measured with repacked and with memory-mapped weights, and
    with a context also each with and without flash attention. memory: the bundle's memory budget; with one, speculation
    is measured beside doing without, otherwise it is off. max_loss: of the answers; then doing without that is measured
    too. kv_type: of both caches (llama_cpp.KV_TYPES); None for what each takes, which is float16. llama.cpp has
    quantized ones with flash attention only.
    Returns FIELDS, `tokens_per_pass`, `load_s`, `threads` and `runs`. With `memory` also `no_speculation`, the same
    without, and in it `ratio`, how many times better speculation is; with a `max_loss` likewise `no_loss`. With
    `against` also `peer`, the best of llama.cpp's results for each field; `peer.variants`, all results; and `ratio`,
    how many times better edgert is. Raises PeerError, EdgertError.
    """
    once = context is not None and not prefill
    if context is not None:
        prompt, prefill = (list(prompt) * (context // len(prompt) + 1))[:context], 0
    room = str(max(len(prompt) + decode * (runs + 1 if once else 1), prefill) + 64)
    cache = kv_type or ""
    guessing = OFF if memory is None else AUTO
    modes = {"edgert": (guessing, max_loss), **({NO_LOSS: (guessing, 0.0)} if max_loss else {}),
             **({} if memory is None else {NO_SPECULATION: (OFF, 0.0)})}
    engines = {name: ("engine_process", [bundle, str(threads), room, mode, cache, str(loss),
                                         *([] if memory is None else [memory])])
               for name, (mode, loss) in modes.items()}
    if against is not None:
        for variant in VARIANTS if context is not None and kv_type not in ("q8", "q4") else VARIANTS[:2]:
            engines[variant] = ("peer", [against, str(threads), room, variant, cache])
    processes: dict[str, EngineProcess] = {}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    try:
        for name, (module, arguments) in engines.items():
            processes[name] = EngineProcess(module, arguments)
        for run in range(-1, runs):  # one to warm up
            for name, process in processes.items():
                if once and run >= 0:
                    result = process.measure(prompt[-1:], decode, 0, go_on=True)
                    del result["first_token_s"]
                else:
                    result = process.measure(prompt, decode, prefill, go_on=once)
                if context is not None and not once:
                    result["prefill_tok_s"] = context / result["first_token_s"]
                if run >= 0:
                    results[name].append(result)
                    report(name, run, result)
    finally:
        for process in processes.values():
            process.close()
    medians = {name: {"load_s": processes[name].load_s, **_medians(found)} for name, found in results.items()}
    answer: dict[str, Any] = {"bundle": bundle, "threads": threads, "runs": runs, "prompt_tokens": len(prompt),
                              "decode_tokens": decode, "memory": memory, "kv_type": kv_type, "max_loss": max_loss,
                              "prefill_tokens": prefill if context is None else 0 if once else context,
                              **medians.pop("edgert")}
    for key, name in (("no_loss", NO_LOSS), ("no_speculation", NO_SPECULATION)):
        if other := medians.pop(name, None):
            answer[key] = {**other, "ratio": _ratio(answer, other)}
    if against is not None:
        best = {field: (min if field in _FEWER_IS_BETTER else max)(m[field] for m in medians.values() if field in m)
                for field in FIELDS if field in answer}
        answer["peer"] = {"name": "llama.cpp", "model": against, **best, "variants": medians}
        answer["ratio"] = _ratio(answer, best)
    return answer


def _medians(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {field: statistics.median(r[field] for r in results) for field in (*FIELDS, "tokens_per_pass")
            if field in results[0]}


def _ratio(ours: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """How many times better ours is, by field."""
    return {field: round(other[field] / ours[field] if field in _FEWER_IS_BETTER else ours[field] / other[field], 3)
            for field in FIELDS if field in ours and field in other}
