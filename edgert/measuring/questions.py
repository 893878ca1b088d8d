"""Multiple-choice questions by log-likelihood: which choice is the likeliest continuation of the question?

Measured as lm-evaluation-harness does (Gao et al. 2021): the question as it stands, one space, a choice; nothing shows
the model the other choices. Its pick is the choice whose tokens have the largest sum of log-probabilities (`acc`), or
the largest sum per byte of the choice's text (`acc_norm`), which does not favour short choices.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgert.errors import ModelError
from edgert.generation.sampling import log_sum_exp
from edgert.text.tokenizer import AnyTokenizer

from .json_lines import Line, naming, read_lines


class Question(NamedTuple):
    """question: text up to the answer. answer: the index of the right choice. where: its place, for messages."""

    question: str
    choices: list[str]
    answer: int
    where: str


class TokenizedQuestion(NamedTuple):
    """Token ids of the question, and of each choice as they follow it."""

    question: list[int]
    choices: list[list[int]]

    @property
    def computed(self) -> int:
        """How many tokens the context must hold: the last token of a choice is only looked up, not computed."""
        return len(self.question) + max(map(len, self.choices)) - 1


class Scores(NamedTuple):
    """What a model makes of one question. log_likelihoods: of each choice, natural logarithms."""

    log_likelihoods: list[float]
    pick: int
    pick_by_bytes: int


def read_questions(path: str) -> list[Question]:
    """Read JSON lines of `{"question": text, "choices": [text, ...], "answer": index}`; other fields are ignored.

    path: also SHIPPED. Raises ModelError, naming the line, for anything else.
    """
    return [_question(line) for line in read_lines(path, "questions.jsonl")]


def _question(line: Line) -> Question:
    question = line.text("question", line.get("question"))
    choices, answer = line.get("choices"), line.get("answer")
    if not isinstance(choices, list) or len(choices) < 2:
        raise ModelError(f"{line.where}: \"choices\" is not a list of at least two texts")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ModelError(f"{line.where}: \"answer\" is not the index of a choice, a whole number from 0 to "
                         f"{len(choices) - 1}")
    return Question(question, [line.text("choices", choice) for choice in choices], answer, line.where)


def tokenize_question(question: Question, tokenizer: AnyTokenizer, context: int) -> TokenizedQuestion:
    """Tokenize a question with each choice, and split where lm-evaluation-harness does (`_encode_pair`): behind as many
    tokens as the question alone has, without the white space at its end.

    Raises ModelError if that leaves a choice without tokens, or if question and choice are longer than the context.
    """
    before = question.question.rstrip()
    with naming(question.where):
        start = tokenizer.encode(before)
        found = TokenizedQuestion(start, [tokenizer.encode(f"{question.question} {choice}")[len(start):]
                                          for choice in question.choices])
        if not all(found.choices):
            raise ModelError("a choice becomes one token with the end of the question; end the question with a word "
                             "or a punctuation mark")
        if found.computed > context:
            raise ModelError(f"question and choice have {found.computed + 1} tokens, the context room for {context}; "
                             "shorten them or raise the context")
    return found


def score_question(question: Question, tokens: TokenizedQuestion, reset: Callable[[int], None],
                   forward: Callable[..., np.ndarray], rows: int) -> Scores:
    """Score the choices of a question, which is computed once.

    reset: keeps so many tokens of those computed, and forgets the others. forward: computes new tokens; float32 logits
    of the last, or with `every` of all of them. rows: positions whose logits may be asked for at once; the scores do
    not depend on it.
    """
    reset(0)
    (logits,) = forward(tokens.question)
    normalizer = log_sum_exp(logits)
    firsts = [float(logits[choice[0]]) - normalizer for choice in tokens.choices]
    del logits  # what is computed for the choices may need its memory
    sums = []
    for first, choice in zip(firsts, tokens.choices, strict=True):
        reset(len(tokens.question))
        sums.append(first + _rest(choice, forward, rows))
    per_byte = [each / len(text.encode()) for each, text in zip(sums, question.choices, strict=True)]
    return Scores(sums, _largest(sums), _largest(per_byte))


def _rest(choice: Sequence[int], forward: Callable[..., np.ndarray], rows: int) -> float:
    """The log-probabilities of a choice's tokens after its first, added up one by one."""
    total = 0.0
    for start in range(1, len(choice), rows):
        targets: Any = choice[start:start + rows]
        logits = forward(choice[start - 1:start - 1 + len(targets)], every=True)
        for row, target in zip(logits, targets, strict=True):
            total += float(row[target]) - log_sum_exp(row)
    return total


def _largest(values: Sequence[float]) -> int:
    """The index of the largest value; of equal ones, the first."""
    return max(range(len(values)), key=values.__getitem__)
