"""Function calls are read out of an answer's text, however it is cut into pieces."""

import random

import pytest

from edgert.generation.tool_calls import CallReader

NAMES = ("get_weather", "add")
WEATHER, ADD = '{"city": "Oslo"}', '{"a": 1, "b": [2, {"c": "}"}]}'


def read(text: str, cuts: list[int]) -> tuple[str, list[tuple[str, str]]]:
    """The text that is no call, and (name, arguments) of the calls, as the pieces have them."""
    reader, plain = CallReader(NAMES), ""
    told: list[list[str]] = []
    ids = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        piece = reader.push(text[start:end])
        plain += piece.text
        for delta in piece.calls:
            if delta.name is not None:
                assert delta.index == len(told) and delta.id and not delta.arguments
                told.append([delta.name, ""])
                ids.append(delta.id)
            else:
                assert delta.arguments and delta.id is None
            told[delta.index][1] += delta.arguments
    plain += reader.flush().text
    calls = [(call.name, call.arguments) for call in reader.calls]
    assert [tuple(each) for each in told] == calls
    assert ids == [call.id for call in reader.calls] and len(set(ids)) == len(ids)
    return plain, calls


CASES = {
    "plain": ("Hello < there, a <tool> {and} more \n", "Hello < there, a <tool> {and} more \n", []),
    "nothing": ("", "", []),
    "white space": (" \n", " \n", []),
    "hermes": ('<tool_call>\n{"name": "get_weather", "arguments": ' + WEATHER + "}\n</tool_call>", "",
               [("get_weather", WEATHER)]),
    "text before": ('I ask.\n\n<tool_call>\n{"name": "add", "arguments": ' + ADD + "}\n</tool_call>\n", "I ask.",
                    [("add", ADD)]),
    "two": ('<tool_call>\n{"name": "add", "arguments": ' + ADD + "}\n</tool_call>\n<tool_call>\n"
            '{"name": "get_weather", "arguments": ' + WEATHER + "}\n</tool_call>", "",
            [("add", ADD), ("get_weather", WEATHER)]),
    "text behind": ('<tool_call>{"name": "add", "arguments": {}}</tool_call>\nDone.', "\nDone.", [("add", "{}")]),
    "arguments first": ('<tool_call>{"arguments": ' + ADD + ', "name": "add"}</tool_call>', "", [("add", ADD)]),
    "arguments as a string": (r'<tool_call>{"name": "add", "arguments": "{\"a\": \"\\n\"}"}</tool_call>', "",
                              [("add", r'{"a": "\n"}')]),
    "another key": ('<tool_call>{"id": 7, "name": "add", "arguments": null, "x": [1]}</tool_call>', "",
                    [("add", "null")]),
    "quotes": (r'<tool_call>{"name": "add", "arguments": {"a": "\"}{\\"}}</tool_call>', "",
               [("add", r'{"a": "\"}{\\"}')]),
    "unknown name": ('<tool_call>{"name": "other", "arguments": {}}</tool_call>', "", [("other", "{}")]),
    "llama": ('{"name": "get_weather", "parameters": ' + WEATHER + "}", "", [("get_weather", WEATHER)]),
    "llama, several": ('{"name": "add", "parameters": {}}; {"name": "add", "parameters": {"a": 1}}', "",
                       [("add", "{}"), ("add", '{"a": 1}')]),
    "doubled braces": ('{{"name": "add", "arguments": ' + ADD + "}}", "", [("add", ADD)]),
    "a block of code": ('```json\n{\n  "name": "add",\n  "arguments": ' + ADD + "\n}\n```", "", [("add", ADD)]),
    "other code": ("```python\nprint()\n```", "```python\nprint()\n```", []),
    "an object that is none": ('{"name": "Oslo", "country": "Norway"}', '{"name": "Oslo", "country": "Norway"}', []),
    "an object without a name": ('{"a": 1}\n', '{"a": 1}\n', []),
    "an object in a text": ('So: {"name": "add", "arguments": {}}', 'So: {"name": "add", "arguments": {}}', []),
    "no object": ("<tool_call>add(1, 2)</tool_call>", "<tool_call>add(1, 2)</tool_call>", []),
    "cut before the name": ('<tool_call>\n{"na', '<tool_call>\n{"na', []),
    "cut in the arguments": ('<tool_call>\n{"name": "add", "arguments": {"a": [1, ', "", [("add", '{"a": [1, ')]),
    "a mark that ends": ("a <tool_cal", "a <tool_cal", []),
    "a mark within a mark": ('<<tool_call>{"name": "add", "arguments": {}}', "<", [("add", "{}")]),
}


@pytest.mark.parametrize("case", CASES)
def test_every_cut(case: str) -> None:
    text, plain, calls = CASES[case]
    rng = random.Random(0)
    every = list(range(1, len(text)))
    for cuts in ([], every, *([at] for at in every), *(sorted(rng.sample(every, len(every) // 4)) for _ in range(20))):
        assert read(text, list(cuts)) == (plain, calls)


def test_arguments_come_while_they_are_written() -> None:
    reader = CallReader(NAMES)
    assert reader.push('<tool_call>{"name": "add"').calls[0].name == "add"
    assert reader.push(', "arguments": {"a": ').calls[0].arguments == '{"a": '
    assert reader.push("12").calls[0].arguments == "12"
    assert reader.push("}}").calls[0].arguments == "}"


def test_any_text_is_read_to_its_end() -> None:
    """Random pieces of calls: nothing raises, and text that is no call is not lost."""
    rng = random.Random(1)
    parts = ["<tool_call>", "</tool_call>", "{", "}", '"name"', ": ", '"add"', ", ", '"arguments"', "[", "]", "\n", "x",
             '"', "\\", "```json", ";", "<"]
    for _ in range(2000):
        text = "".join(rng.choices(parts, k=rng.randint(0, 14)))
        cuts = sorted(rng.sample(range(1, len(text)), min(3, len(text) - 1))) if len(text) > 1 else []
        plain, calls = read(text, cuts)
        assert (plain, calls) == read(text, [])
        assert calls or plain == text


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_no_more_calls_than_are_wanted(size: int) -> None:
    """What comes after the last of them is nothing, neither text nor call."""
    text = "I ask. " + '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>\n' * 3
    reader, plain, enough = CallReader(NAMES, most=2), "", []
    for start in range(0, len(text), size):
        plain += reader.push(text[start:start + size]).text
        enough.append(reader.enough)
    assert [call.arguments for call in reader.calls] == ['{"a": 1}'] * 2 and plain + reader.flush().text == "I ask."
    assert enough == sorted(enough) and enough[-1]
