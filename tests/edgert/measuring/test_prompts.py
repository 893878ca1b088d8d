"""Prompts with one short answer: how they are read, asked and compared, and those that ship."""

import json
from pathlib import Path

import pytest
from tiny_model import give_tokenizer, write_model

import edgert
from edgert.converters.convert import convert
from edgert.measuring.json_lines import SHIPPED
from edgert.measuring.prompts import MAX_TOKENS, Prompt, answer_to, normalized, read_prompts, tokenize_prompt

PROMPT = Prompt("Which river flows through Paris?", ["the seine"], "here")


@pytest.mark.parametrize(("text", "expected"), [
    ("Paris", "paris"), ("  Paris.\n", "paris"), ("\n\nParis!?\nIt is a city.", "paris"), ("3.5", "3.5"),
    ("a, b ;", "a, b"), ("Straße", "strasse"), (" \n", ""), ("...", ""), ("", ""),
])
def test_normalized(text: str, expected: str) -> None:
    assert normalized(text) == expected


def test_an_answer_is_the_first_line_of_the_chat(model: edgert.Model) -> None:
    ids = tokenize_prompt(PROMPT, model)
    message = [{"role": "user", "content": PROMPT.prompt}]
    assert ids == model.render(message)
    assert answer_to(ids, model) == model.chat(message, max_tokens=MAX_TOKENS).text().strip().splitlines()[0]


def test_without_a_chat_template_a_prompt_is_plain_text(tmp_path: Path) -> None:
    folder = give_tokenizer(write_model(tmp_path / "model", size=0.3, vocab_size=258, max_position_embeddings=256))
    (folder / "tokenizer_config.json").write_text("{}")
    convert(str(folder), tmp_path / "m.edge", "q4")
    with edgert.load(tmp_path / "m.edge", context=96) as plain:
        ids = tokenize_prompt(PROMPT, plain)
        assert ids == plain.tokenizer.encode(PROMPT.prompt)
        assert len(ids) == 32  # and 64 more are what the context holds
        with pytest.raises(edgert.ModelError, match=r"^here: the prompt has 33 tokens and its answer may have 64"):
            tokenize_prompt(PROMPT._replace(prompt=PROMPT.prompt + "?"), plain)
        with pytest.raises(edgert.ModelError, match=r"^here: The text has"):
            tokenize_prompt(PROMPT._replace(prompt="a" * 5_000_000), plain)


@pytest.mark.parametrize(("line", "message"), [
    ('{"answer": "b"}', 'has no "prompt"'), ('{"prompt": "a"}', 'has no "answer"'),
    ('{"prompt": "a", "answer": 5}', '"answer" holds 5; it must be a text'),
    ('{"prompt": "a", "answer": []}', '"answer" is an empty list'),
    ('{"prompt": "a", "answer": "."}', "nothing but punctuation"),
])
def test_bad_files(line: str, message: str, tmp_path: Path) -> None:
    (path := tmp_path / "bad.jsonl").write_text('{"prompt": "a", "answer": ["b", "c"]}\n' + line)
    with pytest.raises(edgert.ModelError) as raised:
        read_prompts(str(path))
    assert str(raised.value).startswith(f"{path}, line 2: ") and message in str(raised.value)


def test_shipped_prompts() -> None:
    prompts = read_prompts(SHIPPED)
    assert len(prompts) == len({p.prompt for p in prompts}) == 50
    assert all(len(answer) < 70 for p in prompts for answer in p.answers)


def test_answers_are_read_normalized(tmp_path: Path) -> None:
    (path := tmp_path / "good.jsonl").write_text(json.dumps({"prompt": "a", "answer": ["B.", "c"]}))
    assert read_prompts(str(path)) == [Prompt("a", ["b", "c"], f"{path}, line 1")]
