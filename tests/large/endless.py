"""An answer without end at a fixed budget: memory by the kernel's count, speed once the cache is full, and its worth.

    python tests/large/endless.py BUNDLE [--tokens 20000] [--context 2048] [--memory 300M] [--policies window,heavy]
        [--speculation off] [--text FILE]

Each policy is a process of its own under `limit-memory`. rates: tokens/s of each tenth; without speculation they do not
follow how well the text can be guessed. perplexity: of the second half of the last 4,096 tokens, for the model with all
of them in a float16 cache. --text: in place of one answer a conversation of 20 turns, each of them a part of that text
and an answer of 100 tokens, so that all together are --tokens; rates are those of every second answer. Needs what
budgets.py needs.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from budgets import child, say

PROMPT = "Tell me a very long story about a lighthouse, its keeper, and everybody who ever came to visit."
LAST = 4096


TURNS, ANSWER = 20, 100


def answer(settings: argparse.Namespace) -> dict[str, Any]:
    """What the child does: one long answer."""
    import edgert
    with edgert.load(settings.bundle, context=settings.context, kv_policy=settings.child, memory=settings.memory,
                     speculation=settings.speculation) as model:
        generation = model.chat([{"role": "user", "content": PROMPT}], max_tokens=settings.tokens, ignore_eos=True,
                                temperature=0.8, seed=1)
        rates, started, tenth = [], time.perf_counter(), settings.tokens // 10
        for number, _ in enumerate(generation, 1):
            if number % tenth == 0:
                rates.append(round(tenth / (time.perf_counter() - started), 1))
                started = time.perf_counter()
        return {"policy": settings.child, "rates": rates, "ids": generation.token_ids}


def conversation(settings: argparse.Namespace) -> dict[str, Any]:
    """What the child does: a conversation about a text."""
    import edgert
    with edgert.load(settings.bundle, context=settings.context, kv_policy=settings.child, memory=settings.memory,
                     speculation=settings.speculation) as model:
        ids = model.tokenizer.encode(Path(settings.text).read_text(encoding="utf-8"))
        part, talk, rates = settings.tokens // TURNS - ANSWER, [], []
        for turn in range(TURNS):
            talk.append({"role": "user", "content": "Retell this in your own words: "
                                                    + model.tokenizer.decode(ids[turn * part:(turn + 1) * part])})
            generation = model.chat(talk, max_tokens=ANSWER, ignore_eos=True)
            talk.append({"role": "assistant", "content": generation.text()})
            rates.append(round(generation.statistics.decode_tok_s, 2))
            print(turn, len(model._conversations.current.tokens), rates[-1], file=sys.stderr, flush=True)
        return {"policy": settings.child, "rates": rates[1::2], "ids": list(model._conversations.current.tokens)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--tokens", type=int, default=20000)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--memory", default="300M")
    parser.add_argument("--policies", type=lambda text: text.split(","), default=["window", "heavy"])
    parser.add_argument("--speculation", default="auto")
    parser.add_argument("--text")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps((conversation if arguments.text else answer)(arguments)))
        return
    from long_context import perplexity

    import edgert
    for policy in arguments.policies:
        done = child(arguments.memory, [sys.executable, __file__, *sys.argv[1:], "--child", policy], 3600)
        if done.error:
            sys.exit(f"{policy}: {done.error}")
        ids = done.output.pop("ids")
        with edgert.load(arguments.bundle, context=LAST, kv_type="f16", speculation="off") as model:
            done.output["perplexity"] = round(perplexity(model, ids[-LAST:]), 3)
        say(json.dumps({**done.output, "kernel": done.kernel_says}))


if __name__ == "__main__":
    main()
