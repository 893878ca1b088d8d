"""What types and policies of the key-value cache cost on long texts: perplexity, and needles that are found again.

    python tests/large/long_context.py BUNDLE TEXT [--tokens 6144] [--texts 5] [--questions 4] [--out FILE]

perplexity: of the second half of the first `tokens` tokens, one by one in a session. needles: 20 sentences with
a number each, spread over that many tokens of the text in as many arrangements as --texts says; a prompt is all of it,
and a question after it. The text is read once, and all 20 are asked for; where a policy looks at the question while
it reads the text, all is read for each of the --questions that are asked of an arrangement. Shares are of a float16
cache for all tokens. A table in Markdown goes to --out, progress to standard error.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import edgert
from edgert.bundle import Bundle
from edgert.engine.pool import block_bytes
from edgert.generation.sampling import log_sum_exp
from edgert.kernels.pages import PAGE

PLACES = ("Oslo", "Lima", "Cairo", "Kyoto", "Quito", "Dakar", "Perth", "Turin", "Minsk", "Hanoi", "Malmo", "Porto",
          "Accra", "Davos", "Delhi", "Izmir", "Lagos", "Miami", "Osaka", "Paris")


class Setting(NamedTuple):
    name: str
    kv_type: str
    policy: str
    share: float


SETTINGS = [Setting(f"all, {kind}", kind, "stop", 1.0) for kind in ("f16", "q8", "q4")] + [
    Setting(f"{policy}, {share:.3g}", "q8" if policy == "mixed" else "f16", policy, share)
    for policy in ("window", "heavy", "mixed") for share in (0.5, 0.25, 0.125)] + [
    Setting("flash, 0.25", "f16", "flash", 0.25)]


def loaded(bundle: str, setting: Setting, tokens: int) -> edgert.Model:
    """A model whose cache takes that share of what float16 takes for `tokens`, and for a few more where all stay."""
    room = tokens + 2 * PAGE if setting.policy == "stop" else int(setting.share * tokens) // PAGE * PAGE
    memory = None
    if setting.policy in ("mixed", "flash"):
        with Bundle(bundle) as opened:
            memory = room // PAGE * block_bytes(opened.header.config, "f16")
        room = tokens + 2 * PAGE
    return edgert.load(bundle, context=room, kv_type=setting.kv_type, kv_policy=setting.policy, kv_memory=memory,
                       speculation="off")


def perplexity(model: edgert.Model, ids: list[int]) -> float:
    loss, scored, half = 0.0, 0, len(ids) // 2
    step = min(model.plan.logit_rows, 32)
    model.reset()
    model.extend(ids[:half])
    for start in range(half, len(ids) - 1, step):
        some = ids[start:start + step]
        for row, target in zip(model.extend(some, every=True), ids[start + 1:start + 1 + len(some)], strict=False):
            loss += log_sum_exp(row) - float(row[target])
            scored += 1
    return math.exp(loss / scored)


def needles(model: edgert.Model, ids: list[int], texts: int, questions: int) -> tuple[int, int]:
    """How many numbers were found, of how many."""
    found = asked = 0
    for arrangement in range(texts):
        rng = np.random.default_rng(arrangement)
        numbers = rng.integers(1000, 9999, len(PLACES))
        order, text = rng.permutation(len(PLACES)), []
        part = (len(ids) - 40 * len(PLACES)) // len(PLACES)
        for place, which in enumerate(order):
            needle = f"\nRemember: the secret number of {PLACES[which]} is {numbers[which]}.\n"
            text += ids[place * part:(place + 1) * part] + model.tokenizer.encode(needle, add_bos=False)
        prompts = [[*text, *model.tokenizer.encode(
            f"\nQuestion: what is the secret number of {place}?\nAnswer: the secret number of {place} is",
            add_bos=False)] for place in PLACES]
        some = rng.permutation(len(PLACES))[:questions if model._engine.policy.observes else len(PLACES)]
        for which, answer in zip(some, _answers(model, text, [prompts[which] for which in some]), strict=True):
            found += str(numbers[which]) in answer
            asked += 1
    return found, asked


def _answers(model: edgert.Model, text: list[int], prompts: list[list[int]]) -> Iterator[str]:
    """Answers to prompts that begin with a text."""
    if model._engine.policy.observes:
        for prompt in prompts:
            model.reset()
            yield model.generate(prompt, max_tokens=8).text()
        return
    model.reset()
    model.extend(text)
    with tempfile.TemporaryDirectory() as folder:
        model.save_session(Path(folder) / "a.session")
        for prompt in prompts:
            model.open_session(Path(folder) / "a.session")
            yield model.generate(prompt, max_tokens=8).text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("text")
    parser.add_argument("--tokens", type=int, default=6144)
    parser.add_argument("--texts", type=int, default=5)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--only", type=lambda names: names.split(";"))
    parser.add_argument("--out")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for setting in SETTINGS:
        if arguments.only and setting.name not in arguments.only:
            continue
        started = time.perf_counter()
        with loaded(arguments.bundle, setting, arguments.tokens) as model:
            ids = model.tokenizer.encode(Path(arguments.text).read_text(encoding="utf-8"))[:arguments.tokens]
            found, asked = needles(model, ids, arguments.texts, arguments.questions)
            score = perplexity(model, ids)
            rows.append({"setting": setting.name, "MB": round(model.plan.parts["key-value cache"] / 1e6, 1),
                         "perplexity": round(score, 4), "needles": f"{found} of {asked}"})
        print(rows[-1], f"{time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    table = ["| cache | MB | perplexity | needles found |", "| --- | --- | --- | --- |",
             *(f"| {r['setting']} | {r['MB']} | {r['perplexity']:.3f} | {r['needles']} |" for r in rows)]
    text = "\n".join(table) + "\n"
    if arguments.out:
        Path(arguments.out).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
