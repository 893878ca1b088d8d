"""Four conversations in turn over one key-value cache, with a system prompt in common: what is computed, and how soon
the first token comes.

    python tests/large/conversations.py BUNDLE [--context 4096] [--kv-memory SIZE] [--memory SIZE] [--turns 3]

Each line is a turn: tokens of its prompt, how many of them were computed, and seconds to the first token. Where the
cache has no room for all conversations (--kv-memory), those that wait are on flash.
"""

import argparse
import statistics
import time

import edgert

MAKERS = (("Anna", "Basel"), ("Karl", "Ulm"), ("Maria", "Prague"), ("Paul", "Geneva")) * 8
SYSTEM = ("You are the keeper of a small museum of clocks. " + " ".join(
    f"Room {n} has a clock from the year {1500 + 7 * n}, made by {maker} of {town}, which strikes {n % 12 + 1} times."
    for n, (maker, town) in enumerate(MAKERS)))
QUESTIONS = ("Which is the oldest clock?", "Who made the clock in room 5?", "How often does it strike?",
             "Tell me about the town where it was made.", "Which room should I see next?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--kv-memory")
    parser.add_argument("--memory")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    with edgert.load(arguments.bundle, context=arguments.context, kv_memory=arguments.kv_memory,
                     memory=arguments.memory) as model:
        talks = [[{"role": "system", "content": SYSTEM}] for _ in range(4)]
        warm, tokens = [], []
        for turn in range(arguments.turns):
            for number, talk in enumerate(talks):
                talk.append({"role": "user", "content": f"{'ABCD'[number]}: {QUESTIONS[(turn + number) % 5]}"})
                answer = model.chat(talk, max_tokens=arguments.tokens)
                started = time.perf_counter()
                pieces = iter(answer)
                text = next(pieces).text
                first = time.perf_counter() - started
                text += "".join(piece.text for piece in pieces)
                talk.append({"role": "assistant", "content": text})
                s = answer.statistics
                print(f"turn {turn + 1} of {'ABCD'[number]}: {s.prompt_tokens} tokens, {s.prompt_computed} computed, "
                      f"first after {first:.3f} s", flush=True)
                if turn:
                    warm.append(first)
                    tokens.append(s.prompt_tokens)
        model.reset()
        started = time.perf_counter()
        model.extend([1] * max(tokens))
        print(f"a warm turn's first token: {statistics.median(warm):.3f} s, median of {len(warm)}; computing all of "
              f"{max(tokens)} tokens takes {time.perf_counter() - started:.3f} s")


if __name__ == "__main__":
    main()
