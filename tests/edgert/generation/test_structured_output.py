"""Answers that follow a schema, an expression or a grammar."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from random_schemas import schemas
from tiny_model import give_tokenizer, write_model

import edgert
from edgert.converters.convert import convert
from edgert.generation.grammar import Grammar, Grammars
from edgert.memory.budget import process_bytes
from edgert.residency.region import Region

PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20},
                                           "age": {"type": "integer", "minimum": 0, "maximum": 120}},
          "required": ["name", "age"], "additionalProperties": False}
ASKED = [{"role": "user", "content": "Describe a person as JSON with name and age."}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[edgert.Model]:
    """A model of random weights whose tokens are bytes: it would never write JSON by itself."""
    folder = write_model(tmp_path_factory.mktemp("structured") / "model", size=0.2, vocab_size=258,
                         max_position_embeddings=2048)
    convert(str(give_tokenizer(folder)), folder.with_name("m.edge"), "q4")
    with edgert.load(folder.with_name("m.edge"), threads=1, context=2048) as model:
        yield model


@pytest.mark.parametrize("part", range(4))
def test_answers_to_200_random_schemas_are_valid(tiny: edgert.Model, part: int) -> None:
    for number, schema in enumerate(schemas(200)[50 * part:50 * (part + 1)]):
        answer = tiny.generate("Some JSON: ", schema=schema, temperature=1.5, top_k=0, seed=number)
        jsonschema.validate(json.loads(answer.text()), schema)


def test_a_models_answer(model: edgert.Model) -> None:
    answer = model.chat(ASKED, schema=PERSON, max_tokens=60)
    pieces = list(answer)
    jsonschema.validate(json.loads("".join(piece.text for piece in pieces)), PERSON)
    assert pieces[-1].finish_reason == "stop"
    assert answer.statistics.passes < len(answer.token_ids) - 6  # ", "age": and more are computed together
    assert model.chat(ASKED, schema=json.dumps(PERSON), max_tokens=60).text() == "".join(p.text for p in pieces)


def test_what_is_forced_is_the_same_one_by_one(model: edgert.Model) -> None:
    """With log-probabilities each token is computed for itself."""
    for settings in ({}, {"temperature": 1.2, "seed": 4}):
        together = model.chat(ASKED, schema=PERSON, max_tokens=60, **settings)
        alone = model.chat(ASKED, schema=PERSON, max_tokens=60, logprobs=0, **settings)
        assert together.text() == alone.text()
        assert together.token_ids == alone.token_ids
        scores = model.score([*together.prompt_ids, *together.token_ids])
        pieces = list(model.chat(ASKED, schema=PERSON, max_tokens=60, logprobs=0, **settings))[:-1]
        assert [piece.logprob for piece in pieces] == scores.logprobs[len(together.prompt_ids):].tolist()


@pytest.mark.parametrize("most", range(0, 30, 3))
def test_so_many_tokens_and_no_more(model: edgert.Model, most: int) -> None:
    whole = model.chat(ASKED, schema=PERSON, max_tokens=60)
    whole.text()
    part = model.chat(ASKED, schema=PERSON, max_tokens=most)
    pieces = list(part)
    assert part.token_ids == whole.token_ids[:most]
    assert pieces[-1].finish_reason == ("length" if most < len(whole.token_ids) else "stop")


def test_a_stop_string_in_what_is_forced(model: edgert.Model) -> None:
    answer = model.chat(ASKED, schema=PERSON, max_tokens=60, stop='"age')
    pieces = list(answer)
    assert "".join(piece.text for piece in pieces).endswith('", ')
    assert pieces[-1].finish_reason == "stop"


def test_an_answer_of_nothing_but_forced_tokens(model: edgert.Model) -> None:
    answer = model.chat(ASKED, schema={"const": {"a": [1, 2, "three"]}})
    assert json.loads(answer.text()) == {"a": [1, 2, "three"]}
    after = model.generate("The capital of France is", max_tokens=3)
    assert after.text()


@pytest.mark.parametrize(("settings", "expected"), [
    ({"regex": r"(Paris|Rome)\."}, r"(Paris|Rome)\."),
    ({"grammar": 'start: "yes" | "no" ", because " /[a-z ]{3,20}/ "."'}, r"yes|no, because [a-z ]{3,20}\."),
    ({"schema": True}, r"(?s).*"), ({"schema": {"type": "object"}}, r"(?s)\{.*"),
])
def test_other_grammars(model: edgert.Model, settings: dict[str, Any], expected: str) -> None:
    assert re.fullmatch(expected, model.generate("The capital of France is", max_tokens=30, **settings).text())


@pytest.mark.parametrize(("settings", "message"), [
    ({"schema": "{"}, "the schema is no JSON: "), ({"schema": [1]}, r"the schema is \[1\]; a JSON schema is an object"),
    ({"schema": False}, "the schema is false"), ({"schema": {"type": {1, 2}}}, "the schema is no JSON"),
    ({"schema": {"type": "nonsense"}}, "the schema cannot be used: .*nonsense"),
    ({"schema": '{"items": ' * 200 + "{}" + "}" * 200}, "the schema cannot be used: recursion limit"),
    ({"schema": {"$ref": "#"}}, "the schema cannot be used"),
    ({"schema": {"not": {"type": "string"}}}, "the schema cannot be used: .*not"),
    ({"schema": {"type": "string", "minLength": 3, "maxLength": 2}}, "the schema cannot be used"),
    ({"regex": "("}, "the regex cannot be used"), ({"regex": 5}, "regex is of type int"),
    ({"grammar": "x"}, "the grammar cannot be used"), ({"regex": "a", "schema": {}}, "schema and regex were given"),
    ({"regex": "a", "ignore_eos": True}, "ignore_eos does not go with"),
])
def test_what_cannot_be_followed(model: edgert.Model, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(edgert.ModelError, match=message) as caught:
        model.generate("The", **settings)
    assert len(str(caught.value)) < 500


def test_all_a_constraint_says_depends_on_the_tokens_alone(model: edgert.Model) -> None:
    """However it is asked: forwards, backwards, after wrong guesses."""
    grammars = Grammars(model.tokenizer, model.header.config.vocab_size)
    grammar = Grammar.of(PERSON, None, None)
    assert grammar is not None
    answer = model.chat(ASKED, schema=PERSON, max_tokens=60)
    answer.text()
    tokens, random = answer.token_ids, np.random.default_rng(0)
    forwards = grammars.constraint(grammar)

    def says(constraint: Any, count: int) -> tuple[bytes, list[int], bool]:
        return (constraint.allowed(tokens[:count]).tobytes(), constraint.forced(tokens[:count]),
                constraint.complete(tokens[:count]))

    expected = [says(forwards, count) for count in range(len(tokens) + 1)]
    assert expected[-1][2] and not any(each[2] for each in expected[:-1])
    other = grammars.constraint(grammar)
    for count in random.integers(0, len(tokens) + 1, 60).tolist():
        if random.random() < 0.5:  # a guess: another token, perhaps the end, and one after it
            wrong = int(random.choice([*model.tokenizer.eos_token_ids, random.integers(0, 49152)]))
            other.allowed([*tokens[:count], wrong, 5])
        assert says(other, count) == expected[count]
    assert other.allowed([*tokens[:3], model.tokenizer.eos_token_ids[0]]) is None


def test_a_budget_without_room_is_told_how_to_have_it(smollm2: Path) -> None:
    budget = process_bytes() + Region.promised + (90 << 20)
    with edgert.load(smollm2, memory=budget, context=256) as model:
        assert model.plan.disk is not None
        with pytest.raises(edgert.ModelError, match="structured=True"):
            model.generate("The", schema=PERSON)
    with edgert.load(smollm2, memory=budget, context=256, structured=True) as model:
        jsonschema.validate(json.loads(model.chat(ASKED, schema=PERSON, max_tokens=60).text()), PERSON)
