"""How fast several answers come at once, against one after another, within a budget.

    tests/large/parallel.py MODEL.edge [--memory 600M] [--counts 1 2 4] [--tokens 64] [--repeat 5] [--kv-type q8]

Run under limit-memory, with the bundle's pages dropped from the page cache first. All answers are compared with those
that come alone.
"""

import argparse
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import edgert

QUESTIONS = ["Why is the sky blue?", "Write a Python function that finds the primes below n.",
             "Tell me how bread is made, step by step.", "Who was Ada Lovelace, and what did she do?",
             "What is the difference between a list and a tuple?", "Describe a storm at sea in three sentences.",
             "Write a SQL query for the ten largest orders of each customer.", "How does a bicycle stay upright?"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle")
    parser.add_argument("--memory", default="600M")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--kv-type", default="q8")
    parser.add_argument("--context", type=int, default=512)
    options = parser.parse_args()
    expected: list[list[int]] = []
    alone, differ = 0.0, list[str]()
    for count in options.counts:
        with edgert.load(options.bundle, memory=options.memory, context=options.context, kv_type=options.kv_type,
                         parallel=count) as model, ThreadPoolExecutor(count) as pool:
            def ask(question: str, model: edgert.Model = model) -> list[int]:
                answer = model.chat([{"role": "user", "content": question}], max_tokens=options.tokens,
                                    ignore_eos=True, wait=True)
                answer.text()
                return answer.token_ids

            rates = []
            for number in range(options.repeat + 1):
                started = time.perf_counter()
                found = list(pool.map(ask, QUESTIONS))
                seconds = time.perf_counter() - started
                if number:  # the first learns what passes and guesses take
                    rates.append(sum(map(len, found)) / seconds)
                expected = expected or found
                for question, one, other in zip(QUESTIONS, found, expected, strict=True):
                    if one != other:
                        at = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
                        differ.append(f"{count} at once, round {number}, from token {at} on: {question}")
                        print(differ[-1], flush=True)
            rate = statistics.median(rates)
            alone = alone or rate
            print(f"{count} at once: {rate:.2f} tokens/s in all ({min(rates):.2f} to {max(rates):.2f}), "
                  f"{rate / alone:.2f} x; {100 * model.plan.pinned_share:.0f} % of the weights in memory", flush=True)
    sys.exit(f"{len(differ)} answers differ" if differ else 0)


if __name__ == "__main__":
    main()
