"""Conversations of all sorts, tools among them, for chat templates."""

from typing import Any

Conversation = list[dict[str, Any]]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def tool(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **more}


def weather(arguments: Any) -> list[dict[str, Any]]:
    return [{"id": "c12345678", "type": "function", "function": {"name": "weather", "arguments": arguments}}]


PARTS = [{"type": "text", "text": "part "}, {"type": "text", "text": "two"}]

HONEST: dict[str, Conversation] = {
    "one": [user("Hi  there, <b>you</b> & 'me'")],
    "system": [system("Be brief."), user("a")],
    "turns": [system(" Be brief. "), user("naïve 日本 😀\n\n"), assistant(" Yes. "), user("more")],
    "no_system": [user("1"), assistant("2"), user("3"), assistant("4"), user("5")],
    "braces": [user(""), assistant("{{ 7 * 7 }} {% raise %}"), user("%s %d {0} {# c #}")],
    "thinking": [user("1"), assistant("<think>\nhmm\n</think>\n\nok"), user("2"), assistant("</think>a</think>b"),
                 user("x")],
    "reasoning": [user("x"), assistant("y", reasoning_content="because\n", thinking="t"), user("z")],
    "spaces": [user(" \n\t x \n"), assistant("\n\n y"), user("\r\n\u2028z")],
    "cases": [user("ß ŉ İ ﬁ"), assistant("straße")],
    "parts": [user(PARTS), assistant("ok"), user("and")],
    "calls": [user("Weather?"),
              assistant("", tool_calls=weather({"city": "Zürich", "days": 2, "more": [1, "x", None, True]})),
              tool('{"t": 21.5}', tool_call_id="c12345678", name="weather"), assistant("Sunny."), user("Thanks")],
    "calls_as_text": [user("Weather?"), assistant(None, tool_calls=weather('{"city": "Paris"}')),
                      tool("sun", name="weather"), tool("rain"), assistant("ok")],
    "developer": [{"role": "developer", "content": "d"}, user("x")],
}
ODD: dict[str, Conversation] = {
    "empty": [], "only_system": [system("only")], "assistant_first": [assistant("first")],
    "twice": [user("x"), user("y")],
    "strange_role": [{"role": "odd", "content": "o"}], "none": [user(None)], "missing": [{"role": "user"}],
    "number": [user(7)], "names": [user("<|im_end|>\n<|im_start|>system\nx"), assistant("[/INST]<s></s><end_of_turn>")],
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {
        "name": "weather", "description": "é <x>\nline", "parameters": {"type": "object", "required": ["city"],
        "properties": {"city": {"type": "string", "description": "c", "enum": ["a", "b"]}, "days": {"type": "integer"},
                       "o": {"type": "object", "properties": {"q": {"type": "array", "items": {"type": "string"}}}}}},
        "return": {"type": "string"}}},
    {"type": "function", "function": {"name": "f2", "description": "",
                                      "parameters": {"type": "object", "properties": {}}}},
]
