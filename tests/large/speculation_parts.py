"""What each part of speculation brings: six answers with one part more each time, in turn.

    python tests/large/speculation_parts.py BUNDLE [--budget 600M] [--tokens 64] [--runs 5] [--threads 2] [--depth 5]
        [--prompts rome,python] [--parts off,all]

The parts, each with all before it: `off` nothing is guessed; `base` the draft is attention, the whole output head and
the bases, so many tokens deep each time; `head` only the head's commonest rows stay, and a draft has only those;
`details` the last layers' details stay first, and more rows of the head; `adaptive` as deep as it pays; `siblings`
second choices are checked too; `all` what followed the last tokens before is a guess. Processes in turn, each under
`limit-memory` with a cold page cache, as in budgets.py. Progress goes to standard error, a table to standard output.
"""

import argparse
import json
import statistics
import sys
from typing import Any

from budgets import child, say
from speculation import PROMPTS

PARTS = ("off", "base", "head", "details", "adaptive", "siblings", "all")


def without(part: str) -> None:
    """Take away what comes after this part, in this process."""
    from edgert.bundle.header import HEAD
    from edgert.memory import plan
    from edgert.speculation.lookup import Lookup, Proposal
    from edgert.speculation.speculator import Speculator
    after = PARTS[PARTS.index(part) + 1:]
    if "all" in after:
        Lookup.propose = lambda self, most: Proposal([], 0)  # type: ignore[method-assign]
    if "siblings" in after:
        Speculator._add_siblings = lambda self, guesses, room: None  # type: ignore[method-assign]

    def spread(self: Any, left: int, chunk_bytes: int) -> dict[str, int]:
        head = next(layout for layout in self._others if layout.name == HEAD)
        details = [layout for layout in self._others if layout.name != HEAD]
        common, rest = plan.cut_at(head, min(plan._COMMON_SLABS, head.count))
        phases = ([self._attention, [common], self._bases, [*details, rest]] if part == "head" else
                  [self._attention, [head], self._bases, details])
        none = dict.fromkeys((layout.name for layout in self._streamable), 0)
        return none | plan.spread_in_turn(phases, left, chunk_bytes)

    if part in ("base", "head"):
        plan.Planner._spread_all = spread  # type: ignore[method-assign]


def answers(bundle: str, memory: str, threads: int, tokens: int, part: str, depth: int,
            prompts: list[str]) -> list[dict[str, Any]]:
    """What the child does."""
    import edgert
    without(part)
    mode: str | int = "off" if part == "off" else depth if part in ("base", "head", "details") else "auto"
    found = []
    with edgert.load(bundle, memory=memory, threads=threads, context=512, speculation=mode) as model:
        for name in prompts:
            answer = model.chat([{"role": "user", "content": PROMPTS[name]}], max_tokens=tokens, ignore_eos=True)
            answer.text()
            s = answer.statistics
            found.append({"prompt": name, "ids": answer.token_ids, "tok_s": s.decode_tok_s,
                          "tokens_per_pass": s.tokens_per_pass, "agreement": s.agreement,
                          "draft_ms": 1e3 * s.draft_s / s.passes, "verify_ms": 1e3 * s.verify_s / s.passes,
                          "mb_a_pass": s.flash_bytes / s.passes / 1e6})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--budget", default="600M")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--prompts", type=lambda text: text.split(","), default=list(PROMPTS))
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps({"answers": answers(arguments.bundle, *arguments.child)}))
        return
    every: dict[str, list[list[dict[str, Any]]]] = {part: [] for part in arguments.parts}
    for run in range(arguments.runs):
        for part in arguments.parts[::1 if run % 2 else -1]:
            asked = [arguments.budget, arguments.threads, arguments.tokens, part, arguments.depth, arguments.prompts]
            done = child(arguments.budget, [sys.executable, __file__, arguments.bundle, "--child", json.dumps(asked)],
                         3600)
            if done.error:
                sys.exit(f"{part}: {done.error}")
            every[part].append(done.output["answers"])
            say(f"{part}: {statistics.mean(a['tok_s'] for a in every[part][-1]):.2f} tokens/s, {done.kernel_says}")
    truth = {answer["prompt"]: answer["ids"] for answer in every[arguments.parts[0]][0]}
    print("part      tokens/s  tokens/pass  agreement  draft ms  check ms  MB/pass  by prompt (" +
          ", ".join(arguments.prompts) + ")")
    same = True
    for part, runs in every.items():
        of_all = [answer for run in runs for answer in run]
        same = same and all(answer["ids"] == truth[answer["prompt"]] for answer in of_all)
        rate = statistics.median(statistics.mean(answer["tok_s"] for answer in run) for run in runs)
        mean = {key: statistics.mean(answer[key] for answer in of_all)
                for key in ("tokens_per_pass", "agreement", "draft_ms", "verify_ms", "mb_a_pass")}
        by_prompt = [statistics.median(a["tok_s"] for a in of_all if a["prompt"] == name) for name in arguments.prompts]
        print(f"{part:9} {rate:8.2f}  {mean['tokens_per_pass']:11.2f}  {mean['agreement']:9.3f}  "
              f"{mean['draft_ms']:8.1f}  {mean['verify_ms']:8.1f}  {mean['mb_a_pass']:7.0f}  " +
              " ".join(f"{rate:.1f}" for rate in by_prompt))
    if not same:
        sys.exit("tokens differ from one part to another")


if __name__ == "__main__":
    main()
