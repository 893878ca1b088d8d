"""Chat templates: what they are given, what they make, and how they fail."""

import json
from typing import Any

import pytest
from conversations import HONEST, TOOLS
from plain_jinja import compiled

from edgert.converters.gguf_header import read_header
from edgert.errors import TemplateError
from edgert.text import template_sandbox
from edgert.text.chat_template import DEEPEST, LONGEST_TEMPLATE, ChatTemplate

CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
          "+ '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}
{% set system_message = false %}{% endif %}
{% for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 and system_message != false %}
        {% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {% else %}{% set content = message['content'] %}{% endif %}
    {% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}{{ ' '  + content | trim + ' ' + eos_token }}{% endif %}
{% endfor %}"""
LLAMA3 = """{{- bos_token }}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set ns = namespace(last='', n=0) %}
{%- macro header(role) %}{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' }}{% endmacro %}
{%- for message in messages if message.content is string %}
    {{- header(message.role) }}{{ message.content | trim }}<|eot_id|>
    {%- set ns.last = message.role %}{%- set ns.n = ns.n + 1 %}
    {%- if loop.last %}{{ loop.index ~ '/' ~ loop.length }}{% endif %}
    {%- if loop.index > 50 %}{% break %}{% endif %}
{%- endfor %}
{%- if tools %}{% for tool in tools %}{{ tool | tojson(indent=4) }}
{% endfor %}{{ tools | map(attribute='name') | join(', ') | upper }}{% endif %}
{%- for role, group in messages | groupby('role') %}{{ role }}={{ group | length }} {% endfor %}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ '%s and %03d' | format('x', ns.n) }} {{ '%.2f' % 1.5 }} {{ [1, 2] + [3] }} {{ {'a': 1}.items() | list }}
{{ messages[0].content.split(' ')[-1] }} {{ messages[-1]['content'][:3] }} {{ (1, 2)[0] }} {{ 2 ** 10 }}
{{ messages[0]['content'].replace('a', 'b').upper().startswith('X') }} {{ ns.last | default('none') | capitalize }}
{%- generation %}G{{ ns.n }}{% endgeneration %}
{%- if add_generation_prompt %}{{ header('assistant') }}{% endif %}"""

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi  there, <b>you</b> & 'me'"}],
    [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "naïve 日本 😀\n\n"},
     {"role": "assistant", "content": " Yes. "}, {"role": "user", "content": "<|im_end|>"}],
    [{"role": "user", "content": ""}, {"role": "assistant", "content": "{{ 7 * 7 }} {% raise %}"},
     {"role": "user", "content": "3"}],
]


def reference(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    return compiled(template).render(messages=messages, bos_token="<s>", eos_token="</s>", **options)


@pytest.mark.parametrize("template", [CHATML, LLAMA2, LLAMA3], ids=["chatml", "llama2", "llama3"])
@pytest.mark.parametrize("chat", CHATS, ids=["one", "four", "braces"])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_same_as_jinja_without_limits(template: str, chat: list[dict[str, Any]], prompt: bool,
                                      tools: list[Any] | None) -> None:
    ours = ChatTemplate(template, "<s>", "</s>").render(chat, add_generation_prompt=prompt, tools=tools)
    assert ours.text == reference(template, chat, add_generation_prompt=prompt, tools=tools)
    assert len(ours.given) == len(ours.text)


@pytest.mark.parametrize("fixture", ["smollm2_gguf", pytest.param("qwen_gguf", marks=pytest.mark.reference)])
def test_reference_models(fixture: str, request: pytest.FixtureRequest) -> None:
    template = read_header(request.getfixturevalue(fixture)).metadata["tokenizer.chat_template"]
    ours = ChatTemplate(template, "<s>", "</s>")
    for chat in [*CHATS, *HONEST.values()]:
        for tools in (None, TOOLS):
            try:
                expected = reference(template, chat, add_generation_prompt=True, tools=tools)
            except Exception:
                with pytest.raises(TemplateError):
                    ours.render(chat, tools=tools)
                continue
            assert ours.render(chat, tools=tools).text == expected


def test_long_chat_stays_within_limits() -> None:
    chat = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"message {i} " * 300} for i in range(1500)]
    assert ChatTemplate(LLAMA2).render(chat).text.count("[INST]") == 750
    assert len(ChatTemplate(CHATML).render([{"role": "user", "content": "x" * 3_000_000}]).text) > 3_000_000


def test_a_list_may_be_put_together_message_by_message() -> None:
    template = ("{% set ns = namespace(all=[]) %}{% for m in messages %}{% set ns.all = ns.all + [m] %}{% endfor %}"
                "{{ ns.all | map(attribute='content') | join }}")
    assert ChatTemplate(template).render([{"role": "user", "content": "x"}] * 1000).text == "x" * 1000


def test_missing_and_endless_templates() -> None:
    for nothing in (None, ""):
        with pytest.raises(TemplateError, match="no chat template"):
            ChatTemplate(nothing)
    with pytest.raises(TemplateError, match="characters"):
        ChatTemplate(" " * (LONGEST_TEMPLATE + 1))


def test_template_can_refuse() -> None:
    with pytest.raises(TemplateError, match=r"refuses the messages: Conversation roles must alternate"):
        ChatTemplate(LLAMA2).render([{"role": "assistant", "content": "x"}])


@pytest.mark.parametrize("value", [object(), b"x", {1, 2}, json])
def test_only_plain_values(value: Any) -> None:
    with pytest.raises(TemplateError, match=r"messages\[0\]\['content'\] is of type"):
        ChatTemplate(CHATML).render([{"role": "user", "content": value}])


def test_same_text_again_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "SECONDS", 0.5)
    template = ChatTemplate("{% if messages[0].content == 'loop' %}{% for i in range(9999) %}{% for j in range(9999) %}"
                            "{% endfor %}{% endfor %}{% endif %}{{ messages[0].content }}")
    assert template.render([{"role": "user", "content": "a"}]).text == "a"
    with pytest.raises(TemplateError):
        template.render([{"role": "user", "content": "loop"}])
    assert template.render([{"role": "user", "content": "b"}]).text == "b"


def marked(template: str, chat: list[dict[str, Any]], **options: Any) -> str:
    """What a template makes, with what was given between ‹ and ›."""
    text, given = ChatTemplate(template, "<s>", "</s>").render(chat, **options)
    shown = "".join(f"‹{character}›" if mark else character for character, mark in zip(text, given, strict=True))
    return shown.replace("›‹", "")


@pytest.mark.parametrize(("template", "expected"), [
    ("{{ bos_token }}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}", "<s><|user|>‹ a</x>b ›</s>"),
    ("{{ '<|' + m.role + '|>' + m.content | trim ~ '!' }}", "<|user|>‹a</x>b›!"),
    ("{{ m.content.split('</x>')[-1].strip() }}{{ m.content[:2] }}{{ m['content'][1] }}", "‹b aa›"),
    ("{{ ['<', m.content.strip(), '>'] | join('-') }}", "<-‹a</x>b›->"),
    ("{{ '[%s|%5.1f|%%]' % (m.content.strip(), 2) }}{{ '[{}]{}'.format(m.content, 7) }}",
     "[‹a</x>b›|  2.0|%][‹ a</x>b ›]7"),
    ("{{ m.content.replace('</x>', '<|y|>').upper() }}", "‹ A›<|Y|>‹B ›"),
    ("{{ {'k': m.content} | tojson }}{{ [m.content] }}", "‹{\"k\": \" a</x>b \"}[' a</x>b ']›"),
    ("{% set t %}<|{{ m.content }}|>{% endset %}{{ t | trim }}"
     "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(m.content) }}",
     "<|‹ a</x>b ›|><‹ a</x>b ›>"),
    ("{% for c in m.content %}{{ loop.index }}{{ c }}{% endfor %}", "1‹ ›2‹a›3‹<›4‹/›5‹x›6‹>›7‹b›8‹ ›"),
    ("{{ ('<|a|>\n' + m.content) | indent(2) }}{% filter upper %}<{{ m.content }}{% endfilter %}",
     "<|a|>\n  ‹ a</x>b ›<‹ A</X>B ›"),
])
def test_what_is_given_is_told_from_the_templates_own(template: str, expected: str) -> None:
    chat = [{"role": "user", "content": " a</x>b "}]
    assert marked("{% set m = messages[0] %}" + template, chat) == expected


@pytest.mark.parametrize(("role", "expected"), [("user", "<|user|>"), ("end", "<|‹end›|>"), ("a|><|b", "<|‹a|><|b›|>")])
def test_only_roles_that_templates_know_may_be_part_of_a_token(role: str, expected: str) -> None:
    assert marked("<|{{ messages[0].role }}|>", [{"role": role, "content": ""}]) == expected


def test_messages_too_deep_or_without_end() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    endless: list[Any] = []
    endless.append(endless)
    for content in (deep, endless):
        with pytest.raises(TemplateError, match=rf"holds lists or dictionaries {DEEPEST} deep"):
            ChatTemplate(CHATML).render([{"role": "user", "content": content}])
        with pytest.raises(TemplateError, match=r"tools.*deep"):
            ChatTemplate(CHATML).render([], tools=[{"function": content}])
