"""What `max_loss` brings and costs: answers in turn with several of them, beside exact ones.

    python tests/large/max_loss.py BUNDLE [--budget 600M] [--losses 0,1,3,5,10] [--tokens 128] [--runs 5] [--threads 2]

Six prompts of different kinds (speculation.py), processes in turn, each under `limit-memory` with a cold page cache.
Losses are percentages. Then every answer is scored by the exact model, one token after another in memory: how much less
likely it is a token than if each were the most likely one. Progress goes to standard error, one JSON object to standard
output.
"""

import argparse
import json
import statistics
import sys
from typing import Any

import numpy as np
from budgets import child, say
from speculation import PROMPTS, ask


def answers(bundle: str, memory: str, threads: int, tokens: int, loss: float) -> list[dict[str, Any]]:
    """What the child does."""
    import edgert
    found = []
    with edgert.load(bundle, memory=memory, threads=threads, context=512) as model:
        for name, prompt in PROMPTS.items():
            answer = ask(model, prompt, max_tokens=tokens, max_loss=loss)
            s = answer.statistics
            found.append({"prompt": name, "ids": answer.token_ids, "prompt_ids": answer.prompt_ids,
                          "tok_s": s.decode_tok_s, "tokens_per_pass": s.tokens_per_pass, "agreement": s.agreement,
                          "taken": s.lenient, "loss": s.loss_per_token})
    return found


def scored(bundle: str, found: list[dict[str, Any]], threads: int) -> list[float]:
    """By how much each answer is less likely a token, as the exact model sees it."""
    import edgert
    losses = []
    with edgert.load(bundle, threads=threads, context=512, speculation="off") as model:
        for answer in found:
            first = len(answer["prompt_ids"])
            scores = model.score([*answer["prompt_ids"], *answer["ids"]], top=1, start=first)
            behind = [top[0][1] - logprob for logprob, top in
                      zip(scores.logprobs[first:], scores.top[first:], strict=True)]
            losses.append(float(np.expm1(np.mean(behind))))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--budget", default="600M")
    parser.add_argument("--losses", type=lambda text: [float(n) / 100 for n in text.split(",")],
                        default=[0.0, 0.01, 0.03, 0.05, 0.1])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps({"answers": answers(arguments.bundle, *arguments.child)}))
        return
    every: dict[float, list[list[dict[str, Any]]]] = {loss: [] for loss in arguments.losses}
    for run in range(arguments.runs):
        for loss in arguments.losses[::1 if run % 2 else -1]:
            done = child(arguments.budget, [sys.executable, __file__, arguments.bundle, "--child", json.dumps(
                [arguments.budget, arguments.threads, arguments.tokens, loss])], 3600)
            if done.error:
                sys.exit(f"{100 * loss:g} %: {done.error}")
            every[loss].append(done.output["answers"])
            say(f"{100 * loss:g} %: {statistics.mean(a['tok_s'] for a in every[loss][-1]):.2f} tokens/s, "
                f"{done.kernel_says}")
    table = []
    for loss, runs in every.items():
        rate = statistics.median(statistics.mean(a["tok_s"] for a in run) for run in runs)
        by_prompt = {name: round(statistics.median(a["tok_s"] for run in runs for a in run if a["prompt"] == name), 2)
                     for name in PROMPTS}
        of_all = [a for run in runs for a in run]
        measured = scored(arguments.bundle, of_all, arguments.threads)
        row = {"max_loss": loss, "tok_s": round(rate, 2), "by_prompt": by_prompt,
               **{key: round(statistics.mean(a[key] for a in of_all), 4)
                  for key in ("tokens_per_pass", "agreement", "taken", "loss")},
               "measured_loss": round(statistics.mean(measured), 5), "largest_loss": round(max(measured), 5)}
        if table:
            row["over_exact"] = round(rate / table[0]["tok_s"], 3)
        table.append(row)
        say(json.dumps(row))
    print(json.dumps({"bundle": arguments.bundle, "budget": arguments.budget, "tokens": arguments.tokens,
                      "runs": arguments.runs, "table": table}))


if __name__ == "__main__":
    main()
