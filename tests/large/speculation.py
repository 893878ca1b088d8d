"""Speculation's acceptance run: the same tokens in every mode, and how much faster, beside llama.cpp.

    python tests/large/speculation.py BUNDLE MODEL.gguf [--part identity] [--part speed] [--budgets 600M,800M]
        [--tokens 128] [--runs 5] [--threads 2] [--modes auto,1,3,8,16]

identity: all modes without and with sampling, at each budget and without one, against speculation off without one.
speed: processes in turn, each under `limit-memory` with a cold page cache: speculation off and auto, six prompts of
different kinds each, and llama.cpp memory-mapped, one of them. Needs what budgets.py needs. Progress goes to standard
error, one JSON object to standard output; exit status 1 where tokens differ.
"""

import argparse
import json
import statistics
import sys
from typing import Any

from budgets import TOOLS, UNLIMITED, child, say

import edgert

PROMPTS = {
    "python": "Write a Python function that parses an ISO 8601 date without libraries, and explain its steps.",
    "go": "Write a small HTTP server in Go that counts its visitors, with comments.",
    "sql": "Given tables users(id, country) and visits(user_id, day), write SQL for weekly active users by country.",
    "tides": "Explain to a curious adult why there are two high tides a day.",
    "letter": "Write a letter to a friend who is about to move to the sea.",
    "rome": "Describe how a Roman aqueduct was built and kept in order.",
}
_SAMPLED = {"temperature": 0.8, "seed": 7}


def ask(model: edgert.Model, prompt: str, **settings: Any) -> edgert.Generation:
    """The whole answer; of a base model, which has no chat template, how the text goes on."""
    settings["ignore_eos"] = True
    answer = (model.chat([{"role": "user", "content": prompt}], **settings) if model.chat_template
              else model.generate(prompt, **settings))
    answer.text()
    return answer


def answers(bundle: str, memory: str | None, threads: int, tokens: int, modes: list[str], prompts: list[str],
            sampled: bool) -> list[dict[str, Any]]:
    """What the child does: every prompt in every mode. Modes change within one loaded model, but for "off"."""
    from edgert.speculation.speculator import Speculator, parse
    found = []
    with edgert.load(bundle, memory=memory, threads=threads, context=512, speculation=parse(modes[0])) as model:
        for mode in modes:
            model._speculator = Speculator(model._engine, parse(mode))
            for name in prompts:
                answer = ask(model, PROMPTS[name], max_tokens=tokens, **(_SAMPLED if sampled else {}))
                s = answer.statistics
                found.append({"mode": mode, "prompt": name, "ids": answer.token_ids, "tok_s": round(s.decode_tok_s, 2),
                              "tokens_per_pass": round(s.tokens_per_pass, 2), "agreement": round(s.agreement, 3),
                              "siblings": s.siblings, "wrong": s.wrong, "guessed": s.guessed, "passes": s.passes,
                              "draft_s": round(s.draft_s, 3), "verify_s": round(s.verify_s, 3),
                              "bytes_a_pass": round(s.flash_bytes / max(s.passes, 1))})
    return found


def run(arguments: argparse.Namespace, budget: str, threads: int, modes: list[str], prompts: list[str], *,
        sampled: bool = False) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The child's answers, and what the kernel counted."""
    done = child(budget, [sys.executable, __file__, arguments.bundle, "-", "--child", json.dumps(
        [None if budget == UNLIMITED else budget, threads, arguments.tokens, modes, prompts, sampled])], 3600)
    if done.error:
        sys.exit(f"{budget}, {modes}: {done.error}")
    return done.output["answers"], done.kernel_says


def identity(arguments: argparse.Namespace) -> dict[str, Any]:
    faults, compared, prompts = [], 0, list(PROMPTS)[::2]
    for sampled in (False, True):
        truth = {a["prompt"]: a["ids"] for a in run(arguments, UNLIMITED, 2, ["off"], prompts, sampled=sampled)[0]}
        for budget in (UNLIMITED, *arguments.budgets):
            for threads in arguments.threads:
                for answer in run(arguments, budget, threads, arguments.modes, prompts, sampled=sampled)[0]:
                    compared += 1
                    if answer["ids"] != truth[answer["prompt"]]:
                        faults.append(f"{budget}, {threads} threads, {answer['mode']}, {answer['prompt']}, {sampled=}")
                say(f"identity, {budget}, {threads} threads, {sampled=}: {compared} answers, {len(faults)} differ")
    return {"ok": not faults, "faults": faults, "compared": compared, "tokens": arguments.tokens}


def speed(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    threads, table = arguments.threads[-1], []
    for budget in arguments.budgets:
        rates: dict[str, list[float]] = {"off": [], "auto": [], "llama.cpp": []}
        by_prompt: dict[str, dict[str, list[Any]]] = {name: {"off": [], "auto": []} for name in PROMPTS}
        for number in range(arguments.runs):
            for mode in ("off", "auto") if number % 2 else ("auto", "off"):
                found, kernel = run(arguments, budget, threads, [mode], list(PROMPTS))
                rates[mode].append(statistics.mean(a["tok_s"] for a in found))
                for answer in found:
                    by_prompt[answer["prompt"]][mode].append(answer)
                say(f"speed, {budget}, {mode}: {rates[mode][-1]:.2f} tok/s, {kernel}")
            if arguments.gguf != "-":
                theirs = child(budget, [sys.executable, str(TOOLS / "llamacpp-baseline"), arguments.gguf, "--no-repack",
                                        "--tokens", "24", "--threads", str(threads), "--context", "512",
                                        "--prompt", PROMPTS["tides"]], 3600)
                rates["llama.cpp"].append(theirs.output.get("decode_tok_s", 0.0))
                say(f"speed, {budget}, llama.cpp: {rates['llama.cpp'][-1]} tok/s, {theirs.kernel_says}")
        medians = {who: round(statistics.median(found), 2) for who, found in rates.items() if found}
        prompts = {}
        for name, of in by_prompt.items():
            rate = {mode: statistics.median(a["tok_s"] for a in found) for mode, found in of.items()}
            last = of["auto"][-1]
            prompts[name] = {**rate, "ratio": round(rate["auto"] / rate["off"], 2),
                             **{key: last[key] for key in last if key not in ("ids", "tok_s", "mode", "prompt")}}
            assert of["auto"][0]["ids"] == of["off"][0]["ids"], (budget, name)
        table.append({"budget": budget, **medians, "over_off": round(medians["auto"] / medians["off"], 2),
                      "over_llama": round(medians["auto"] / medians.get("llama.cpp", float("nan")), 2), "all": rates,
                      "prompts": prompts})
        say(json.dumps({key: value for key, value in table[-1].items() if key != "all"}))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("gguf", help='the file that the bundle was made from, for llama.cpp; "-" for none')
    parser.add_argument("--part", choices=("identity", "speed"), action="append")
    parser.add_argument("--budgets", type=lambda text: text.split(","), default=["600M", "800M"])
    parser.add_argument("--modes", type=lambda text: text.split(","), default=["auto", "1", "3", "8", "16"])
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[2])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps({"answers": answers(arguments.bundle, *arguments.child)}))
        return
    result = {part: {"identity": identity, "speed": speed}[part](arguments)
              for part in arguments.part or ("identity", "speed")}
    print(json.dumps(result))
    sys.exit(0 if result.get("identity", {"ok": True})["ok"] else 1)


if __name__ == "__main__":
    main()
