"""Tools: rendered by the template, enforced by a grammar, read out of the answer, given back in messages."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import edgert
from edgert.text.chat_template import ChatTemplate

TEMPLATES = Path(__file__).parents[2] / "golden" / "chat_templates"
WEATHER = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"$ref": "#/$defs/U"}},
           "required": ["city", "unit"], "$defs": {"U": {"enum": ["celsius", "kelvin"]}}}
ADD = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "add", "parameters": ADD}},
    {"type": "function", "function": {"name": "now"}}]
ASKED = [{"role": "user", "content": "What is the weather in Oslo?"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
RESULT = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]},
          {"role": "tool", "tool_call_id": "call_1", "content": "-7 degrees"}]


@pytest.fixture(params=["axolotl-qwen_25", "trl-llama3_1"])
def caller(request: pytest.FixtureRequest, model: edgert.Model, monkeypatch: pytest.MonkeyPatch) -> edgert.Model:
    """SmolLM2 with the chat template of a model that was made for tools."""
    template = ChatTemplate((TEMPLATES / f"{request.param}.jinja").read_text(), "<|begin_of_text|>", "<|im_end|>")
    monkeypatch.setitem(model.__dict__, "_template", template)
    return model


@pytest.mark.parametrize(("choice", "names"), [
    ("required", {"get_weather", "add", "now"}), ("add", {"add"}), ({"function": {"name": "now"}}, {"now"}),
    ({"type": "function", "function": {"name": "get_weather"}}, {"get_weather"})])
def test_a_call_that_must_be(caller: edgert.Model, choice: Any, names: set[str]) -> None:
    for settings in ({}, {"temperature": 1.2, "seed": 1}, {"logprobs": 0}):
        answer = caller.chat(ASKED, tools=TOOLS, tool_choice=choice, max_tokens=80, **settings)
        pieces = list(answer)
        (call,) = answer.tool_calls
        assert call.name in names and pieces[-1].finish_reason == "tool_calls"
        schema = {"get_weather": WEATHER, "add": ADD, "now": {"type": "object"}}[call.name]
        jsonschema.validate(json.loads(call.arguments), schema)
        assert "".join(piece.text for piece in pieces) == ""
        deltas = [delta for piece in pieces for delta in piece.calls]
        assert deltas[0].name == call.name and "".join(delta.arguments for delta in deltas) == call.arguments


def test_tools_that_need_not_be_called(caller: edgert.Model) -> None:
    with_tools = caller.chat(ASKED, tools=TOOLS, max_tokens=5)
    without = caller.chat(ASKED, tools=TOOLS, tool_choice="none", max_tokens=5)
    assert '"get_weather"' in caller.tokenizer.decode(with_tools.prompt_ids)
    assert without.prompt_ids == caller.render(ASKED)
    assert with_tools.text() and with_tools.tool_calls == without.tool_calls == []


def test_calls_and_results_reach_the_template(caller: edgert.Model) -> None:
    prompt = caller.tokenizer.decode(caller.render(RESULT, tools=TOOLS))
    assert '{"city": "Oslo"}' in prompt and "-7 degrees" in prompt
    assert prompt.count('"name": "get_weather"') == 2  # in the list of tools, and the call
    null = [{**message, "tool_calls": None} if message["role"] == "user" else message for message in RESULT]
    assert caller.tokenizer.decode(caller.render(null, tools=TOOLS)) == prompt


@pytest.mark.parametrize(("settings", "message"), [
    ({"tools": [{"name": "add"}]}, r"tools\[0\] is no function"),
    ({"tools": [*TOOLS, TOOLS[1]]}, r"tools\[3\] has the name of another, add"),
    ({"tools": [{"function": {"name": "add", "parameters": [1]}}]}, r"the parameters of tools\[0\], add, are no"),
    ({"tools": TOOLS, "tool_choice": "multiply"}, "tool_choice names multiply, which is none of the tools"),
    ({"tools": TOOLS, "tool_choice": 3}, "tool_choice is 3"),
    ({"tool_choice": "required"}, "tool_choice is 'required', but there are no tools"),
    ({"tools": TOOLS, "schema": "{"}, "the schema is no JSON"),
])
def test_what_is_refused(caller: edgert.Model, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(edgert.ModelError, match=message):
        caller.chat(ASKED, **settings)


def test_arguments_that_are_no_json(caller: edgert.Model) -> None:
    broken = {**CALL, "function": {"name": "add", "arguments": "{"}}
    with pytest.raises(edgert.ModelError, match=r"messages\[1\]: the arguments of the call of add are no JSON"):
        caller.render([*ASKED, {"role": "assistant", "tool_calls": [broken]}])


def test_a_template_without_a_place_for_tools(model: edgert.Model) -> None:
    with pytest.raises(edgert.TemplateError, match="has no place for tools"):
        model.chat(ASKED, tools=TOOLS)
