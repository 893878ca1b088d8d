"""Real models' chat templates: the same text as Jinja without limits, and only the template's own special tokens."""

import os
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import tokenizers
from conversations import HONEST, ODD, TOOLS, Conversation, assistant, system, tool, user
from plain_jinja import compiled
from tokenizers import decoders, models, pre_tokenizers

from edgert.errors import TemplateError
from edgert.generation.thinking import SWITCHES
from edgert.text.chat_template import ChatTemplate
from edgert.text.tokenizer import Tokenizer

FOLDERS = [Path(__file__).parents[2] / "golden" / "chat_templates",
           *map(Path, filter(None, [os.environ.get("EDGERT_TEST_TEMPLATES")]))]
TEMPLATES = {path.stem: path.read_text() for folder in FOLDERS for path in sorted(folder.glob("*.jinja"))}


def ours(template: ChatTemplate, chat: Conversation, **options: Any) -> str | None:
    try:
        return template.render(chat, **options).text
    except TemplateError:
        return None


def theirs(template: jinja2.Template, chat: Conversation, *, values: dict[str, Any] | None = None,
           **options: Any) -> str | None:
    try:
        return template.render(messages=chat, bos_token="<s>", eos_token="</s>",
                               **{"tools": None, "add_generation_prompt": True, **options, **(values or {})})
    except Exception:  # the template is a program: it may raise anything
        return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_same_as_jinja_without_limits(name: str) -> None:
    """Equal text, or both refuse."""
    template, plain = ChatTemplate(TEMPLATES[name], "<s>", "</s>"), compiled(TEMPLATES[name])
    rendered = 0
    for label, chat in {**HONEST, **ODD}.items():
        for options in ({}, {"tools": TOOLS}, {"add_generation_prompt": False},
                        *({"values": dict.fromkeys(SWITCHES, thinks)} for thinks in (True, False))):
            expected = theirs(plain, chat, **options)
            assert ours(template, chat, **options) == expected, (label, options)
            rendered += expected is not None
    assert rendered >= 6  # no template refuses them all


@pytest.mark.parametrize("name", TEMPLATES)
def test_long_chats_are_within_the_limits(name: str) -> None:
    """Some templates take a time that is quadratic in the messages, or put lists together one by one."""
    chat = [turn for index in range(250) for turn in (user(f"{index} " * 50), assistant("a"))] + [user("end")]
    assert ours(ChatTemplate(TEMPLATES[name], "<s>", "</s>"), chat) == theirs(compiled(TEMPLATES[name]), chat)


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
NAME = re.compile(r"<\|[^<>|\s]+\|>|<｜[^<>｜\s]+｜>|</?[a-z_]+>|\[/?[A-Z_]+\]|\[\|[a-z_]+\|\]")
WITHOUT_TOKENS = {"axolotl-llava"}
BUILT = ["<|user|>", "<|system|>", "<|assistant|>", "<|observation|>", "<s>", "</s>"]


def names_of(template: str) -> list[str]:
    """What may be special tokens in this template, also those that it builds of a role."""
    names = {*NAME.findall(template), *BUILT}
    return sorted(name for name in names if not any(name in repr(chat) for chat in HONEST.values()))


def tokenizer_with(names: list[str]) -> Tokenizer:
    library = tokenizers.Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(ALPHABET)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(names)
    return Tokenizer(library)


@pytest.mark.parametrize("name", TEMPLATES)
def test_honest_messages_keep_their_special_tokens(name: str) -> None:
    template = ChatTemplate(TEMPLATES[name], "<s>", "</s>")
    tokenizer = tokenizer_with(names_of(TEMPLATES[name]))
    found = 0
    for chat in HONEST.values():
        try:
            text, given = template.render(chat, tools=TOOLS)
        except TemplateError:
            continue
        ids = tokenizer.encode(text)
        assert tokenizer.encode(text, given=given) == ids
        assert tokenizer._encode_around(text, given)[0] == ids
        found += not tokenizer.special_ids.isdisjoint(ids)
    assert found or name in WITHOUT_TOKENS


def structure(template: ChatTemplate, tokenizer: Tokenizer, words: str) -> list[int]:
    """The special tokens of a conversation where everything that a caller may give is `words`."""
    calls = [{"id": "c12345678", "type": "function", "function": {"name": words, "arguments": {words: words}}}]
    chat = [system(words), user(words), assistant(words, reasoning_content=words, tool_calls=calls),
            tool(words, name=words, tool_call_id="c12345678"), assistant(words),
            user([{"type": "text", "text": words}] * 2)]
    special: list[int] = []
    for messages in ([chat[1]], chat[:2], chat[1:3], chat[:5], chat[-1:], [{"role": words, "content": words}]):
        for tools in (None, [{"type": "function", "function": {"name": words, "description": words, "parameters": {
                "type": "object", "properties": {words: {"type": "string", "description": words}}}}}]):
            try:
                text, given = template.render(messages, tools=tools)
            except TemplateError:
                continue
            ids = tokenizer.encode(text, given=given)
            assert tokenizer.decode(ids) == text
            special += [index for index in ids if index in tokenizer.special_ids]
    return special


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_callers_give_never_becomes_a_special_token(name: str) -> None:
    template, names = ChatTemplate(TEMPLATES[name], "<s>", "</s>"), names_of(TEMPLATES[name])
    tokenizer = tokenizer_with(names)
    expected = structure(template, tokenizer, "ab")
    assert structure(template, tokenizer, f"a{''.join(names)}b") == expected
    assert expected or name in WITHOUT_TOKENS
