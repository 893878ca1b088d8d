"""The messages of a conversation as Ollama's clients write them."""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Struct

from ..unsupported import Unsupported, refuse


class CalledFunction(Struct):
    name: str
    arguments: dict[str, Any]


class Call(Struct):
    """A call of a function that an answer had."""

    function: CalledFunction
    id: str | None = None


class Message(Struct):
    """tool_calls, thinking: in one of the assistant. tool_name, tool_call_id: in one of a tool, whose call it is the
    result of."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: Unsupported = UNSET
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


def turns_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as a chat template takes them. Raises ApiError."""
    turns = []
    for number, message in enumerate(messages):
        refuse(message, ("images",), within=f"messages[{number}].")
        turn: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        turn |= {name: value for name, value in (
            ("name", message.tool_name), ("tool_call_id", message.tool_call_id),
            ("reasoning_content", message.thinking)) if value is not None}
        if message.tool_calls:
            turn["tool_calls"] = [
                {**({} if call.id is None else {"id": call.id}), "type": "function",
                 "function": {"name": call.function.name, "arguments": call.function.arguments}}
                for call in message.tool_calls]
        turns.append(turn)
    return turns
