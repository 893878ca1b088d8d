"""The messages of a conversation as clients write them, and as chat templates take them."""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Struct

from .errors import ApiError
from .unsupported import Unsupported, refuse


class Part(Struct):
    """A part of a message."""

    type: str
    text: str | None = None


class CalledFunction(Struct):
    """arguments: JSON text."""

    name: str
    arguments: str


class Call(Struct):
    """A call of a function that an answer had."""

    function: CalledFunction
    id: str | None = None
    type: str = "function"


class Message(Struct):
    """tool_calls, reasoning_content: in one of the assistant. tool_call_id, name: in one of a tool, whose call it is
    the result of."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    function_call: Unsupported = UNSET


def turns_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as a chat template takes them. Raises ApiError."""
    return [_turn(message, number) for number, message in enumerate(messages)]


def _turn(message: Message, number: int) -> dict[str, Any]:
    name = f"messages[{number}]"
    refuse(message, ("function_call",), within=f"{name}.")
    # The newer name of a role that templates know under its older one.
    turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role,
                            "content": _text(message.content or "", f"{name}.content")}
    for key in ("tool_call_id", "name", "reasoning_content"):
        if (value := getattr(message, key)) is not None:
            turn[key] = value
    for at, call in enumerate(message.tool_calls or []):
        if call.type != "function":
            raise ApiError(400, f"{name}.tool_calls[{at}] is of type {call.type}; only function is supported",
                           param=f"{name}.tool_calls", code="unsupported")
    if message.tool_calls:
        turn["tool_calls"] = [{**({} if call.id is None else {"id": call.id}), "type": call.type, "function": {
            "name": call.function.name, "arguments": call.function.arguments}} for call in message.tool_calls]
    return turn


def _text(content: str | list[Part], name: str) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if part.type != "text" or part.text is None:
            raise ApiError(400, f"{name} has a part of type {part.type}; only text is supported", param=name,
                           code="unsupported")
    return "".join(part.text or "" for part in content)
