"""Answers of a form that was asked for, and calls of functions, as OpenAI's own client reads them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field
from served import Server, limited
from tiny_model import give_tokenizer, write_model

from edgert.converters.convert import convert

pytestmark = pytest.mark.xdist_group("server")
TEMPLATES = Path(__file__).parents[2] / "golden" / "chat_templates"
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Who wrote Hamlet?"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"enum": [1, 2, 3]}},
           "required": ["city", "days"], "additionalProperties": False}
ADD = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["a"],
       "additionalProperties": False}
SCHEMAS = {"get_weather": WEATHER, "add": ADD}
TOOLS: list[Any] = [{"type": "function", "function": {"name": name, "description": "Useful.", "parameters": schema}}
                    for name, schema in SCHEMAS.items()]


class Person(BaseModel):
    name: str
    kind: Literal["poet", "king"]
    plays: Annotated[list[bool], Field(max_length=3)]


@pytest.fixture(scope="module", params=["axolotl-qwen_25", "trl-llama3_1"])
def caller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model of random weights with the chat template of one that was made for tools."""
    folder = write_model(tmp_path_factory.mktemp("caller") / "caller", vocab_size=258, max_position_embeddings=4096)
    give_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "chat_template": (TEMPLATES / f"{request.param}.jinja").read_text(), "bos_token": "<s>", "eos_token": "</s>"}))
    convert(str(folder), bundle := folder.with_suffix(".edge"), "q4")
    made = Server(bundle, "--temperature", "1.2", errors=tmp_path_factory.mktemp("server") / "errors")
    yield made.until_ready()
    assert made.end() == 0 and "Traceback" not in made.said, made.said


def test_a_class_to_be_filled(server: Server) -> None:
    """What the client makes of a class is a schema; what comes back, an object of it."""
    answer = server.client().chat.completions.parse(model="any", messages=QUESTION, response_format=Person,
                                                    max_tokens=200, temperature=0)
    (choice,) = answer.choices
    assert isinstance(choice.message.parsed, Person) and choice.finish_reason == "stop"
    with server.client().chat.completions.stream(model="any", messages=QUESTION, response_format=Person,
                                                 max_tokens=200, temperature=0) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == choice.message.parsed


@pytest.mark.parametrize("form", [
    {"type": "json_object", "schema": WEATHER},
    {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER}},
    {"type": "json_schema", "json_schema": {"name": "w", "strict": True, "schema": WEATHER}}])
def test_a_schema(caller: Server, form: dict[str, Any]) -> None:
    for n in (1, 3):
        answer = caller.client().chat.completions.create(model="any", messages=QUESTION, n=n, max_tokens=400,
                                                         extra_body={"response_format": form})
        for choice in answer.choices:
            jsonschema.validate(json.loads(choice.message.content or ""), WEATHER)
            assert choice.finish_reason == "stop" and not choice.message.tool_calls


def test_any_object(server: Server) -> None:
    answer = server.client().chat.completions.create(model="any", messages=[
        {"role": "user", "content": "Give the capital of France as JSON with one key."}], max_tokens=100,
        response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


@pytest.mark.parametrize(("extra", "param", "said"), [
    ({"response_format": {"type": "xml"}}, "response_format", "the type xml is not supported"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
     "response_format", "the schema cannot be used"),
    ({"response_format": "json"}, "response_format", "expected `object | null`, got `str`"),
    ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
    ({"tools": TOOLS, "tool_choice": "multiply"}, "tool_choice", "names multiply, which is none"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "the name of a function"),
    ({"tools": [{"type": "web_search"}]}, "tools", "tools[0] is no function"),
    ({"tools": [*TOOLS, TOOLS[0]]}, "tools", "tools[2] has the name of another"),
    ({"tools": "all"}, "tools", "expected `array | null`, got `str`"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "add", "arguments": "{"}}]}]},
     "messages", "the arguments of the call of add are no JSON"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "custom", "function": {
        "name": "add", "arguments": "{}"}}]}]}, "messages[0].tool_calls", "only function is supported")])
def test_what_cannot_be_had_is_refused_by_name(caller: Server, extra: dict[str, Any], param: str, said: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            caller.client().chat.completions.create(model="any", messages=QUESTION, stream=stream, extra_body=extra)
        assert caught.value.param == param and said in str(caught.value)


def test_a_model_that_was_not_made_for_tools(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="no place for tools"):
        server.client().chat.completions.create(model="any", messages=QUESTION, tools=TOOLS)


@pytest.mark.parametrize(("choice", "names"), [
    ("required", {"get_weather", "add"}), ({"type": "function", "function": {"name": "add"}}, {"add"})])
def test_a_call_that_must_be(caller: Server, choice: Any, names: set[str]) -> None:
    settings: dict[str, Any] = {"model": "any", "messages": QUESTION, "tools": TOOLS, "tool_choice": choice,
                                "max_tokens": 400, "seed": 7}
    answer = caller.client().chat.completions.create(**settings).choices[0]
    assert answer.message.content is None and answer.finish_reason == "tool_calls" and answer.message.tool_calls
    (call,) = answer.message.tool_calls
    assert call.type == "function" and call.function.name in names
    jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])

    chunks = list(caller.client().chat.completions.create(**settings, stream=True))
    first, *more = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    assert first.index == 0 and first.id and first.type == "function" and first.function
    assert first.function.name == call.function.name and len(more) > 1 and {delta.id for delta in more} == {None}
    assert "".join(d.function.arguments or "" for d in [first, *more] if d.function) == call.function.arguments
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    with caller.client().chat.completions.stream(**settings) as stream:
        (again,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert again.function.arguments == call.function.arguments


def test_a_call_or_an_answer_of_a_form(caller: Server) -> None:
    """Where nothing must be called the model may do either, and nothing else."""
    (bracket,) = caller.ask("/tokenize", {"prompt": "[", "add_special_tokens": False}).json()["tokens"]
    for liked, reason in ((-100, "tool_calls"), (100, "stop")):
        (choice,) = caller.client().chat.completions.create(
            model="any", messages=QUESTION, tools=TOOLS, max_tokens=400, seed=3, parallel_tool_calls=False,
            logit_bias={bracket: liked}, response_format={"type": "json_schema", "json_schema": {
                "name": "x", "schema": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}}}).choices
        assert choice.finish_reason == reason
        for call in choice.message.tool_calls or []:
            assert call.type == "function"
            jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
        if reason == "stop":
            assert {type(value) for value in json.loads(choice.message.content or "")} <= {bool}


def test_what_a_function_returned_reaches_the_model(caller: Server) -> None:
    """A conversation with a call in it is rendered as the model's template has it."""
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 5}'}}
    messages: list[Any] = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]},
                           {"role": "tool", "tool_call_id": "call_1", "content": "the sum is 12"}]
    answer = caller.client().chat.completions.create(model="any", messages=messages, tools=TOOLS, max_tokens=3)
    alone = caller.client().chat.completions.create(model="any", messages=QUESTION, tools=TOOLS, max_tokens=3)
    assert answer.usage and alone.usage and answer.usage.prompt_tokens > alone.usage.prompt_tokens + 40
    tokens = caller.ask("/tokenize", {"messages": messages}).json()["tokens"]
    assert "the sum is 12" in caller.ask("/detokenize", {"tokens": tokens}).json()["content"]


def test_langchain(caller: Server, server: Server) -> None:
    langchain = pytest.importorskip("langchain_openai")
    settings: dict[str, Any] = {"model": "any", "api_key": "none", "max_retries": 0, "max_tokens": 300}
    filled = langchain.ChatOpenAI(base_url=f"{server.url}/v1", temperature=0, **settings).with_structured_output(Person)
    assert isinstance(filled.invoke("Who wrote Hamlet?"), Person)
    bound = langchain.ChatOpenAI(base_url=f"{caller.url}/v1", **settings).bind_tools(TOOLS, tool_choice="add")
    (call,) = bound.invoke("What is 2 and 3?").tool_calls
    assert call["name"] == "add" and set(call["args"]) == {"a"}


def test_where_there_is_no_memory_for_it(smollm2: Path, tmp_path: Path) -> None:
    """It is answered all the same, and what needs that memory is refused in one sentence."""
    for options in (("-m", "125M"), ("-m", "160M", "--no-structured")):
        served = Server(smollm2, "-c", "512", *options, before=limited(options[1]), errors=tmp_path / "errors")
        served.until_ready()
        client = served.client()
        assert client.chat.completions.create(model="any", messages=QUESTION, max_tokens=3).choices[0].message.content
        with pytest.raises(openai.BadRequestError, match=r"the memory budget .* to spare"):
            client.chat.completions.create(model="any", messages=QUESTION, max_tokens=9,
                                           response_format={"type": "json_object"})
        assert served.end() == 0
