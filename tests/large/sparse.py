"""Sparse models' acceptance run: the same logits at every budget, bytes and speed of each part of the method, beside
llama.cpp memory-mapped on a file of the same size and shape.

    python tests/large/sparse.py FOLDER MODEL.gguf [--budgets 550M] [--tokens 96] [--runs 5] [--threads 2]

FOLDER holds what these commands made (make_sparse.py says what of it is like real models):

    python tests/large/make_sparse.py FOLDER/model --shape reglu
    edgert convert FOLDER/model FOLDER/relu.edge --calibrate FOLDER/model/calibration.txt --predictors
    python tests/large/make_sparse.py FOLDER/model --shape reglu --silu    (of an OPT: without)
    edgert convert FOLDER/model FOLDER/silu.edge --no-calibrate
    python tests/large/make_gguf.py MODEL.gguf --shape reglu --tokenizer-from SMOLLM2.gguf

Tokens are given, a text that changes its topic now and then: random weights write none. Variants, each in a process of
its own, under `limit-memory` with a cold page cache: `naive` streams all neurons of the same model with SiLU, `chosen`
reads those that a token needs but keeps only as many as a layer has, `window` keeps as many as there is room for,
`predicted` is the window of a model that leaves out the neurons that its predictors take to be zero (--max-loss).
Progress goes to standard error, one JSON object to standard output; exit status 1 where logits differ.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from budgets import TOOLS, UNLIMITED, child, say
from make_sparse import text

VARIANTS = ("naive", "chosen", "window", "predicted")
_PROMPT, _WARM = 32, 16


def measured(bundle: str, memory: str | None, threads: int, tokens: int, least: bool,
             max_loss: float) -> dict[str, Any]:
    """What the child does: a prompt, some tokens that warm the window up, then `tokens` one at a time."""
    import edgert
    from edgert.memory import plan, window
    if least:
        plan.candidates = lambda header, most: [window.least_slots(header)]  # type: ignore[attr-defined]
    with edgert.load(bundle, memory=memory, threads=threads, context=512, speculation="off",
                     max_loss=max_loss) as model:
        engine, session = model._engine, model._conversations.current
        ids = text(engine.config.vocab_size, _PROMPT + _WARM + tokens)
        engine.forward(session, ids[:_PROMPT])
        digest, times, before = hashlib.sha256(), [], 0
        for number, token in enumerate(ids[_PROMPT:]):
            if number == _WARM:
                before = engine.source.reading.bytes
            started = time.perf_counter()
            digest.update(engine.forward(session, [token]).tobytes())
            times.append(time.perf_counter() - started)
        return {"tok_s": round(1 / statistics.mean(times[_WARM:]), 2), "logits": digest.hexdigest(),
                "bytes_a_token": round((engine.source.reading.bytes - before) / tokens),
                "read_s_a_token": round(engine.source.reading.seconds / len(ids), 5),
                "window": sum(engine._weights._placement.window.values()),
                "planned_bytes_a_token": model.plan.streamed, "left_out": model.left_out and model.left_out._asdict()}


def run(arguments: argparse.Namespace, variant: str, budget: str) -> dict[str, Any]:
    bundle = arguments.folder / ("silu.edge" if variant == "naive" else "relu.edge")
    done = child(budget, [sys.executable, __file__, str(arguments.folder), "-", "--child", json.dumps(
        [str(bundle), None if budget == UNLIMITED else budget, arguments.threads, arguments.tokens,
         variant == "chosen", arguments.max_loss if variant == "predicted" else 0.0])], 3600)
    if done.error:
        sys.exit(f"{variant}, {budget}: {done.error}")
    say(f"{variant}, {budget}: {done.output}, {done.kernel_says}")
    return done.output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("gguf", help='for llama.cpp; "-" for none')
    parser.add_argument("--budgets", type=lambda value: value.split(","), default=["550M"])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-loss", type=float, default=1.0, help="0.03 for 3 %%, of `predicted`")
    parser.add_argument("--variants", type=lambda value: value.split(","))
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measured(*arguments.child)))
        return
    variants = arguments.variants or (VARIANTS if (arguments.folder / "silu.edge").exists() else VARIANTS[1:])
    whole = [name for name in variants if name != "chosen"]
    result: dict[str, Any] = {"unlimited": {name: run(arguments, name, UNLIMITED) for name in whole}}
    truth, same = {name: found["logits"] for name, found in result["unlimited"].items()}, True
    truth["chosen"] = truth.get("window")
    for budget in arguments.budgets:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
        rates: list[float] = []
        for _ in range(arguments.runs):
            for name in variants:
                found[name].append(run(arguments, name, budget))
                same &= found[name][-1]["logits"] == truth[name]
            if arguments.gguf != "-":
                theirs = child(budget, [sys.executable, str(TOOLS / "llamacpp-baseline"), arguments.gguf,
                                        "--no-repack", "--tokens", "24", "--threads", str(arguments.threads),
                                        "--context", "512"], 3600)
                rates.append(theirs.output.get("decode_tok_s", 0.0))
                say(f"llama.cpp, {budget}: {rates[-1]}, {theirs.kernel_says}")
        medians = {name: statistics.median(each["tok_s"] for each in of) for name, of in found.items()}
        result[budget] = {"tok_s": medians, "llama.cpp": statistics.median(rates) if rates else None, "runs": found,
                          "all_llama": rates}
        say(json.dumps({key: value for key, value in result[budget].items() if key != "runs"}))
    print(json.dumps({"same_logits": same, **result}))
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
