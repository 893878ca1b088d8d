"""An answer without end at a fixed budget: memory by the kernel's count, speed once the cache is full, and its worth.

    python tests/large/endless.py BUNDLE [--tokens 20000] [--context 2048] [--memory 300M] [--policies window,heavy]

Each policy is a process of its own under `limit-memory`. rates: tokens/s of each tenth. perplexity: of the second half
of the last 4,096 tokens, for the model with all of them in a float16 cache. Needs what budgets.py needs.
"""

import argparse
import json
import sys
import time
from typing import Any

from budgets import child, say

PROMPT = "Tell me a very long story about a lighthouse, its keeper, and everybody who ever came to visit."
LAST = 4096


def answer(bundle: str, policy: str, tokens: int, context: int, memory: str) -> dict[str, Any]:
    """What the child does."""
    import edgert
    with edgert.load(bundle, context=context, kv_policy=policy, memory=memory) as model:
        generation = model.chat([{"role": "user", "content": PROMPT}], max_tokens=tokens, ignore_eos=True,
                                temperature=0.8, seed=1)
        rates, started = [], time.perf_counter()
        for number, _ in enumerate(generation, 1):
            if number % (tokens // 10) == 0:
                rates.append(round(tokens / 10 / (time.perf_counter() - started), 1))
                started = time.perf_counter()
        return {"policy": policy, "rates": rates, "ids": generation.token_ids}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--tokens", type=int, default=20000)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--memory", default="300M")
    parser.add_argument("--policies", type=lambda text: text.split(","), default=["window", "heavy"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(answer(arguments.bundle, arguments.child, arguments.tokens, arguments.context,
                                arguments.memory)))
        return
    from long_context import perplexity

    import edgert
    for policy in arguments.policies:
        done = child(arguments.memory, [sys.executable, __file__, arguments.bundle, "--child", policy, "--tokens",
                                        str(arguments.tokens), "--context", str(arguments.context), "--memory",
                                        arguments.memory], 3600)
        if done.error:
            sys.exit(f"{policy}: {done.error}")
        ids = done.output.pop("ids")
        with edgert.load(arguments.bundle, context=LAST, kv_type="f16", speculation="off") as model:
            done.output["perplexity"] = round(perplexity(model, ids[-LAST:]), 3)
        say(json.dumps({**done.output, "kernel": done.kernel_says}))


if __name__ == "__main__":
    main()
