"""Tools: functions that a model is offered, how it is made to call one, and calls in the messages of a conversation."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from edgert.errors import ModelError

from .grammar import COMPACT, Schema, schema_text
from .tool_calls import BEGIN, END

Choice = Literal["none", "auto", "required"] | Mapping[str, Any]


class Tools(NamedTuple):
    """Functions that are offered. given: as OpenAI's API has them; parameters: their JSON schemas, by name."""

    given: list[Mapping[str, Any]]
    parameters: dict[str, Mapping[str, Any]]

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]]) -> "Tools":
        """Raises ModelError for tools that are none."""
        parameters: dict[str, Mapping[str, Any]] = {}
        for number, tool in enumerate(tools):
            function = tool.get("function") if isinstance(tool, Mapping) else None
            name = function.get("name") if isinstance(function, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
                raise ModelError(f'tools[{number}] is no function; it is {{"type": "function", "function": {{"name": '
                                 '..., "parameters": a JSON schema}}')
            if name in parameters:
                raise ModelError(f"tools[{number}] has the name of another, {name}")
            schema = function.get("parameters") or {"type": "object", "properties": {}}
            if not isinstance(schema, Mapping):
                raise ModelError(f"the parameters of tools[{number}], {name}, are no JSON schema")
            parameters[name] = schema
        return cls(list(tools), parameters)

    def grammar(self, choice: Choice, template: str, marks: Mapping[str, int], schema: Schema | None) -> str | None:
        """A grammar of what an answer may be, None for anything: one call of the function that `choice` names, or of
        any where it is "required". (Where several calls are allowed, weak models do not find an end.)

        template: the model's chat template, in whose form calls are written. marks: the ids of BEGIN and END, where
        these are special tokens. schema: a JSON schema for an answer that is no call. Raises ModelError.
        """
        if choice == "auto" and schema is None:
            return None
        if choice in ("auto", "required"):
            names = list(self.parameters)
        else:
            function = choice.get("function", choice) if isinstance(choice, Mapping) else None
            name = function.get("name") if isinstance(function, Mapping) else choice
            if not isinstance(name, str):
                raise ModelError(f'tool_choice is {choice!r}; it is "none", "auto", "required", or the name '
                                 "of a function")
            if name not in self.parameters:
                raise ModelError(f"tool_choice names {name}, which is none of the tools")
            names = [name]
        marked = BEGIN in template
        rules = [f"call{number}: %json {json.dumps(_call(name, self.parameters[name], marked=marked))}"
                 for number, name in enumerate(names)]
        call = " | ".join(f"call{number}" for number in range(len(names)))
        if marked:
            begin, end = (f"<[{marks[mark]}]>" if mark in marks else json.dumps(mark) for mark in (BEGIN, END))
            call = f'{begin} "\\n" ({call}) "\\n" {end}'
        if choice == "auto":
            call = f"{call} | answer"
            rules.append(f"answer: %json {json.dumps({'x-guidance': COMPACT, **json.loads(schema_text(schema))})}")
        return "\n".join([f"start: {call}", *rules])


def _call(name: str, parameters: Mapping[str, Any], *, marked: bool) -> dict[str, Any]:
    """The JSON schema of a call of a function."""
    shared = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}  # named from the root
    own = {key: value for key, value in parameters.items() if key not in shared}
    key = "arguments" if marked else "parameters"
    return {"x-guidance": {**COMPACT, "lenient": True}, **shared, "type": "object",
            "properties": {"name": {"const": name}, key: own}, "required": ["name", key],
            "additionalProperties": False}


def with_arguments_read(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages whose calls have objects as arguments, which is what templates want, not JSON texts, as clients send
    them. Raises ModelError for texts that are no JSON."""
    read: list[Mapping[str, Any]] = []
    for number, message in enumerate(messages):
        calls = message.get("tool_calls")
        others = {key: value for key, value in message.items() if key != "tool_calls"}
        read.append({**others, "tool_calls": [_read(call, number) for call in calls]} if calls else others)
    return read


def _read(call: Any, number: int) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        raise ModelError(f"messages[{number}]: the arguments of the call of {function.get('name')} are no "
                         "JSON") from None
    return {**call, "function": {**function, "arguments": arguments}}
