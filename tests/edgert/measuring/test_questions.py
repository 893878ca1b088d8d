"""Multiple-choice questions: how they are read, cut into tokens and scored, and those that ship."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tiny_model import give_tokenizer, write_model
from tokenizers import decoders, models, pre_tokenizers

import edgert
from edgert.converters.convert import convert
from edgert.measuring.accuracy import Accuracy
from edgert.measuring.json_lines import SHIPPED
from edgert.measuring.questions import Question, read_questions, score_question, tokenize_question
from edgert.text.tokenizer import Tokenizer

QUESTION = Question("Which is it? ", ["a b", "something longer", "c", "ö"], 2, "here")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[edgert.Model]:
    """Random weights; each byte of a text is one token."""
    folder = write_model(tmp_path_factory.mktemp("questions") / "model", size=0.3, num_hidden_layers=2, hidden_size=64,
                         intermediate_size=160, num_attention_heads=4, vocab_size=258)
    convert(str(give_tokenizer(folder)), folder.with_name("m.edge"), "q4")
    with edgert.load(folder.with_name("m.edge"), context=64) as model:
        yield model


def test_scores_are_the_models(tiny: edgert.Model) -> None:
    """Against logits of the whole text, computed at once for each choice."""
    tokens = tokenize_question(QUESTION, tiny.tokenizer, tiny.context)
    expected = []
    for choice in QUESTION.choices:
        ids = tiny.tokenizer.encode(f"{QUESTION.question} {choice}")
        assert len(ids) <= tiny.plan.logit_rows
        tiny.reset()
        logits = tiny.extend(ids, every=True).astype(np.float64)
        log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        start = len(QUESTION.question.rstrip())
        expected.append(sum(log_probabilities[i - 1, ids[i]] for i in range(start, len(ids))))
    found = [score_question(QUESTION, tokens, tiny.reset, tiny.extend, rows) for rows in (1, 3, 64)]
    assert found[0] == found[1] == found[2]
    assert found[0].log_likelihoods == pytest.approx(expected, abs=1e-4)
    assert found[0].pick == int(np.argmax(expected))
    assert found[0].pick_by_bytes == int(np.argmax(np.divide(expected, [3, 16, 1, 2])))


def test_white_space_at_the_end_of_a_question_belongs_to_the_choice(tiny: edgert.Model) -> None:
    tokens = tokenize_question(QUESTION, tiny.tokenizer, 64)
    assert tiny.tokenizer.decode(tokens.question) == "Which is it?"
    assert [tiny.tokenizer.decode(choice) for choice in tokens.choices] == [f"  {text}" for text in QUESTION.choices]
    assert tokens.computed == 12 + 18 - 1


def test_split_behind_as_many_tokens_as_the_question_alone_has() -> None:
    """As `_encode_pair` does, also where the last token of the question is another one before the choice."""
    vocabulary = {"a": 0, "b": 1, "c": 2, "Ġ": 3, "ca": 4, "aĠ": 5, "aĠb": 6}
    library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "Ġ"), ("aĠ", "b"), ("c", "a")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(library)
    split = tokenize_question(Question("ca", ["c", "bc"], 0, "here"), tokenizer, 8)
    assert split.question == [4]
    assert split.choices == [[5, 2], [6, 2]]  # of c + "a " + c, and of c + "a b" + c: the first token is passed over
    with pytest.raises(edgert.ModelError, match="here: a choice becomes one token with the end of the question"):
        tokenize_question(Question("a", ["c", "b"], 0, "here"), tokenizer, 8)


def test_longer_than_the_context(tiny: edgert.Model) -> None:
    assert tokenize_question(QUESTION, tiny.tokenizer, 29)
    with pytest.raises(edgert.ModelError, match=r"^here: question and choice have 30 tokens, the context room for 28"):
        tokenize_question(QUESTION, tiny.tokenizer, 28)


def test_keeping_tokens(tiny: edgert.Model) -> None:
    tiny.reset()
    whole = tiny.extend(range(9))
    tiny.extend([1, 2])
    tiny.reset(5)
    np.testing.assert_array_equal(tiny.extend(range(5, 9)), whole)
    with pytest.raises(edgert.ModelError, match="cannot be truncated to 10"):
        tiny.reset(10)


GOOD = '{"question": "a", "choices": ["b", "c"], "answer": 1}'
BAD = {
    "not JSON": (b"{question}", "is not a JSON object"),
    "a list": (b"[]", "is not a JSON object"),
    "nested too deeply": (b"[" * 100_000, "is not a JSON object"),
    "not UTF-8": (b'{"question": "\xff"}', "is not UTF-8 text"),
    "no question": (b'{"choices": ["b", "c"], "answer": 1}', 'has no "question"'),
    "no choices": (b'{"question": "a", "answer": 1}', 'has no "choices"'),
    "no answer": (b'{"question": "a", "choices": ["b", "c"]}', 'has no "answer"'),
    "empty question": (b'{"question": " ", "choices": ["b", "c"], "answer": 1}',
                       '"question" holds " "; it must be a text, and not empty'),
    "empty choice": (b'{"question": "a", "choices": ["b", ""], "answer": 1}', '"choices" holds ""; it must be a text'),
    "a number": (b'{"question": "a", "choices": ["b", 5], "answer": 1}', '"choices" holds 5; it must be a text'),
    "half a character": (b'{"question": "\\ud800", "choices": ["b", "c"], "answer": 1}', "surrogate"),
    "one choice": (b'{"question": "a", "choices": ["b"], "answer": 0}', '"choices" is not a list of at least two'),
    "choices as text": (b'{"question": "a", "choices": "bc", "answer": 0}', '"choices" is not a list of at least two'),
    "answer too large": (b'{"question": "a", "choices": ["b", "c"], "answer": 2}', "a whole number from 0 to 1"),
    "negative answer": (b'{"question": "a", "choices": ["b", "c"], "answer": -1}', "a whole number from 0 to 1"),
    "answer as text": (b'{"question": "a", "choices": ["b", "c"], "answer": "c"}', "a whole number from 0 to 1"),
    "answer as truth": (b'{"question": "a", "choices": ["b", "c"], "answer": true}', "a whole number from 0 to 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name: str, tmp_path: Path) -> None:
    line, message = BAD[name]
    (path := tmp_path / "bad.jsonl").write_bytes(GOOD.encode() + b"\n\n" + line + b"\n")
    with pytest.raises(edgert.ModelError) as raised:
        read_questions(str(path))
    assert str(raised.value).startswith(f"{path}, line 3: ") and message in str(raised.value)


def test_no_file_and_no_lines(tmp_path: Path) -> None:
    with pytest.raises(edgert.ModelError, match="no such file"):
        read_questions(str(tmp_path / "none.jsonl"))
    (path := tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(edgert.ModelError, match="is empty; it needs one JSON object a line"):
        read_questions(str(path))


def test_shipped_questions() -> None:
    questions = read_questions(SHIPPED)
    assert len(questions) == len({q.question for q in questions}) == 200
    assert Counter(q.answer for q in questions) == dict.fromkeys(range(4), 50)
    for question in questions:
        assert question.question.endswith("?\nAnswer:"), question
        assert len({choice.casefold() for choice in question.choices}) == 4, question
        assert all(choice == choice.strip() for choice in question.choices)
        lengths = [len(choice) for choice in question.choices]
        assert max(lengths) <= max(2.5 * min(lengths), 4), question


def test_shipped_answers_are_not_betrayed_by_their_length() -> None:
    """Always taking the longest choice, or the shortest, is right as often as chance has it."""
    questions = read_questions(SHIPPED)
    for extreme in (max, min):
        right = sum(q.choices.index(extreme(q.choices, key=len)) == q.answer for q in questions)
        assert abs(right - 50) < 3 * math.sqrt(200 * 0.25 * 0.75)


def test_accuracy() -> None:
    assert Accuracy.of([True, True, False, False]) == (0.5, pytest.approx(math.sqrt(0.25 / 3)))
    assert Accuracy.of([True]) == (1.0, 0.0)
