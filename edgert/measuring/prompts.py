"""Small tasks with one short right answer, which a model must give exactly.

Perplexity and log-likelihood look at one token at a time, each after a text that is right; here a mistake stays. (Zhou
et al. 2024, "Sirius": contextual sparsity that perplexity hardly shows makes reasoning fail.)
"""

from typing import NamedTuple

from edgert.bundle.header import CHAT_TEMPLATE
from edgert.errors import ModelError
from edgert.model import Model

from .json_lines import Line, naming, read_lines

MAX_TOKENS = 64
"""Of an answer, of which only the first line counts."""
_FINAL = ".!?,;:"


class Prompt(NamedTuple):
    """answers: the texts that are right, normalized. where: its place, for messages."""

    prompt: str
    answers: list[str]
    where: str


def read_prompts(path: str) -> list[Prompt]:
    """Read JSON lines of `{"prompt": text, "answer": text or [text, ...]}`; other fields are ignored.

    path: also SHIPPED. Raises ModelError, naming the line, for anything else.
    """
    return [_prompt(line) for line in read_lines(path, "prompts.jsonl")]


def _prompt(line: Line) -> Prompt:
    prompt, answer = line.text("prompt", line.get("prompt")), line.get("answer")
    answers = [normalized(line.text("answer", text)) for text in (answer if isinstance(answer, list) else [answer])]
    if not answers or not all(answers):
        raise ModelError(f"{line.where}: \"answer\" is an empty list, or has nothing but punctuation")
    return Prompt(prompt, answers, line.where)


def normalized(text: str) -> str:
    """What is compared of an answer: its first line that is not empty, in lower case, without white space around it
    and without punctuation (.!?,;:) at its end."""
    first = text.strip().splitlines()[:1]
    return "".join(first).rstrip().rstrip(_FINAL).rstrip().casefold()


def tokenize_prompt(prompt: Prompt, model: Model) -> list[int]:
    """The prompt's token ids: as a user's message where the model has a chat template, as plain text otherwise.

    Raises ModelError if the context has no room for it and MAX_TOKENS more, and TemplateError.
    """
    with naming(prompt.where):
        if CHAT_TEMPLATE in model.header.sections:
            ids = model.render([{"role": "user", "content": prompt.prompt}])
        else:
            ids = model.tokenizer.encode(prompt.prompt)
        if len(ids) + MAX_TOKENS > model.context:
            raise ModelError(f"the prompt has {len(ids)} tokens and its answer may have {MAX_TOKENS}, the context room "
                             f"for {model.context}; shorten it or raise the context")
    return ids


def answer_to(ids: list[int], model: Model, max_loss: float = 0.0) -> str:
    """The model's greedy answer, up to the end of its first line that is not empty."""
    text, answer = "", model.generate(ids, max_tokens=MAX_TOKENS, max_loss=max_loss)
    for piece in answer:
        text += piece.text
        if "\n" in text.lstrip():
            break
    answer.close()
    return "".join(text.strip().splitlines()[:1])
