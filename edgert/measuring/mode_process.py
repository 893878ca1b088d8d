"""A process that holds one model in one mode and measures what is asked for, for modes.py.

    python -m edgert.measuring.mode_process BUNDLE SETTINGS

SETTINGS are keywords of `edgert.load`, as JSON. The first line of the answer is what the model is; then requests are
lines of JSON, {"what": "text", ...}, and so are the answers.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from .json_lines import naming
from .perplexity import score, windows
from .prompts import answer_to, normalized, read_prompts, tokenize_prompt
from .questions import read_questions, score_question, tokenize_question

if TYPE_CHECKING:
    from edgert.model import Model

_ROWS = 64
"""Positions whose logits are in memory at once, at most."""


def text(model: "Model", name: str, text: str, window: int, max_tokens: int | None) -> dict[str, Any]:
    """tokens, loss, choices: as of perplexity.Score. digest: of the tokens; choices can be compared where it is the
    same. name: of the text, for messages."""
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text, add_bos=False)[:max_tokens]
    rows = min(model.plan.logit_rows, _ROWS)

    def logits_of(part: Sequence[int], first: int) -> Iterator[np.ndarray]:
        model.reset()
        model.extend(part[:first])
        for start in range(first, len(part), rows):
            yield model.extend(part[start:start + rows], every=True)

    with naming(name):
        parts = windows(ids, window, tokenizer.bos_token_id if tokenizer.add_bos_token else None)
    found = score(parts, logits_of)
    return {"tokens": found.tokens, "loss": found.loss, "choices": found.choices,
            "digest": xxhash.xxh3_64_hexdigest(json.dumps(parts).encode())}


def questions(model: "Model", file: str) -> dict[str, Any]:
    """right: of each question, whether its likeliest choice is."""
    asked = read_questions(file)
    rows = min(model.plan.logit_rows, _ROWS)
    tokens = [tokenize_question(question, model.tokenizer, model.context) for question in asked]
    return {"right": [score_question(question, each, model.reset, model.extend, rows).pick == question.answer
                      for question, each in zip(asked, tokens, strict=True)]}


def prompts(model: "Model", file: str, max_loss: float) -> dict[str, Any]:
    """answers: of each prompt, normalized. right: whether it is the one that was wanted."""
    asked = read_prompts(file)
    answers = [normalized(answer_to(tokenize_prompt(prompt, model), model, max_loss)) for prompt in asked]
    return {"answers": answers,
            "right": [answer in prompt.answers for prompt, answer in zip(asked, answers, strict=True)]}


def speed(model: "Model", prompts: list[str], tokens: int, max_loss: float, runs: int) -> dict[str, Any]:
    """One greedy answer to each prompt in each run, after one that warms up. Of all answers together: tokens, decode_s
    (both without first tokens, a value for each run), flash_bytes, passes, lenient, loss (in nats) and generated."""
    asked = [_asked(model, prompt) for prompt in prompts]
    _answer(model, asked[0], tokens, max_loss)
    total: dict[str, Any] = {"tokens": 0, "flash_bytes": 0, "passes": 0, "lenient": 0, "loss": 0.0, "generated": 0,
                             "run_tok_s": []}
    for _ in range(runs):
        seconds, made = 0.0, 0
        for ids in asked:
            s = _answer(model, ids, tokens, max_loss)
            seconds += s.decode_s
            made += s.generated_tokens - 1
            for key, value in (("flash_bytes", s.flash_bytes), ("passes", s.passes), ("lenient", s.lenient),
                               ("loss", s.loss), ("generated", s.generated_tokens)):
                total[key] += value
        total["tokens"] += made
        total["run_tok_s"].append(made / seconds)
    return total


def _asked(model: "Model", prompt: str) -> list[int]:
    if model.chat_template is None:
        return model.tokenizer.encode(prompt)
    return model.render([{"role": "user", "content": prompt}])


def _answer(model: "Model", ids: list[int], tokens: int, max_loss: float) -> Any:
    model.reset()
    answer = model.generate(ids, max_tokens=tokens, ignore_eos=True, max_loss=max_loss)
    for _ in answer:
        pass
    return answer.statistics


WHAT: dict[str, Callable[..., dict[str, Any]]] = {"text": text, "questions": questions, "prompts": prompts,
                                                  "speed": speed}


def main() -> None:
    from edgert.loading import load
    path, settings = sys.argv[1:]
    with load(path, **json.loads(settings)) as model:
        print(json.dumps({"drafts": model.drafts, "budget": model.plan.budget, "threads": model.threads,
                          "streams": model.plan.disk is not None, "leaves_out": bool(model.header.losses),
                          "left_out": model.left_out and model.left_out._asdict()}), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            if request["what"] == "budgets":
                answer: dict[str, Any] = dict(zip(("smallest", "whole"), model.budgets(), strict=True))
            else:
                answer = WHAT[request.pop("what")](model, **request)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
