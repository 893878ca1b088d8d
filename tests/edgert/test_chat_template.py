"""Chat templates: the same text as transformers, and an end to templates that do more than they may."""

import json
import re
import time
import tracemalloc
from typing import Any

import pytest

from edgert.chat_template import LONGEST_TEMPLATE, ChatTemplate
from edgert.errors import TemplateError

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
TOOL_CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}]},
    {"role": "tool", "content": "{\"t\": 21.5}"}, {"role": "tool", "content": "sun"},
    {"role": "assistant", "content": "Sunny."}, {"role": "user", "content": "Thanks"},
]
TOOLS: list[dict[str, Any]] = [{"type": "function", "name": "f", "function": {
    "name": "weather", "description": "é <x>",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]


def reference(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    rendered, _ = utils.render_jinja_template(
        [messages], chat_template=template, bos_token="<s>", eos_token="</s>", **options)
    return rendered[0]


@pytest.mark.parametrize("template", [CHATML, LLAMA2, LLAMA3], ids=["chatml", "llama2", "llama3"])
@pytest.mark.parametrize("chat", CHATS, ids=["one", "four", "braces"])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_same_as_transformers(template: str, chat: list[dict[str, Any]], prompt: bool, tools: list[Any] | None) -> None:
    ours = ChatTemplate(template, "<s>", "</s>").render(chat, add_generation_prompt=prompt, tools=tools)
    assert ours == reference(template, chat, add_generation_prompt=prompt, tools=tools)


@pytest.mark.parametrize("fixture", ["smollm2_gguf", pytest.param("qwen_gguf", marks=pytest.mark.reference)])
def test_reference_models(fixture: str, request: pytest.FixtureRequest) -> None:
    gguf = pytest.importorskip("gguf")
    path = request.getfixturevalue(fixture)
    template = gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents()
    ours = ChatTemplate(template, "<s>", "</s>")
    for chat in [*CHATS, TOOL_CALLS]:
        for tools in (None, TOOLS):
            assert ours.render(chat, tools=tools) == reference(template, chat, add_generation_prompt=True, tools=tools)


def test_long_chat_stays_within_limits() -> None:
    chat = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"message {i} " * 300} for i in range(1500)]
    assert ChatTemplate(LLAMA2).render(chat).count("[INST]") == 750
    assert len(ChatTemplate(CHATML).render([{"role": "user", "content": "x" * 3_000_000}])) > 3_000_000


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


def test_same_text_again_after_a_refusal() -> None:
    template = ChatTemplate("{% if messages[0].content == 'loop' %}{% for i in range(9999) %}{% for j in range(9999) %}"
                            "{% endfor %}{% endfor %}{% endif %}{{ messages[0].content }}")
    assert template.render([{"role": "user", "content": "a"}]) == "a"
    with pytest.raises(TemplateError):
        template.render([{"role": "user", "content": "loop"}])
    assert template.render([{"role": "user", "content": "b"}]) == "b"


DOUBLE = "{% set ns = namespace(v=%s) %}{% for i in range(60) %}{% set ns.v = %s %}{% endfor %}"


def doubling(start: str, step: str, after: str = "") -> str:
    return DOUBLE.replace("%s", start, 1).replace("%s", step, 1) + after


NESTED_TWICE = (doubling("[1]", "[ns.v, ns.v]", "{% set a = ns.v %}") + doubling("[1]", "[ns.v, ns.v]"))

HOSTILE = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "nested_test": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "nested_text": "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "captured_text": "{% set t %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
    "captured_value": "{% set s = 'x' * 4000000 %}{% set t %}" + "{{ s }}" * 8000 + "{% endset %}",
    "straight_line": "{% set s = 'x' * 4000000 %}{{ 1 }}" + "{% set t = s[1:] %}" * 3000,
    "compares": "{% set s = 'x' * 4000000 %}{% set t = 'x' * 4000000 %}" + "{{s==t}}" * 7000 + "{{ s * 9 }}",
    "long_chain": "{{ " + " and ".join(["1 == 1"] * 6000) + " }}",
    "multiply": "{{ 'x' * 10**10 }}",
    "multiply_list": "{{ ([0] * 10**10) | length }}",
    "constant": "{{ 'x' | center(10**10) }}{{ ('x' * 9**9) | length }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "power_loop": doubling("9", "ns.v * ns.v"),
    "concat": doubling("'x'", "ns.v ~ ns.v"),
    "add": doubling("'x'", "ns.v + ns.v"),
    "add_list": doubling("[1]", "ns.v + ns.v"),
    "nest_list": doubling("[1]", "[ns.v, ns.v]", "{{ ns.v }}"),
    "nest_json": doubling("[1]", "[ns.v, ns.v]", "{{ ns.v | tojson }}"),
    "nest_dict": doubling("{}", "{'a': ns.v, 'b': ns.v}", "{{ ns.v | string | length }}"),
    "nest_compare": NESTED_TWICE + "{{ a == ns.v }}",
    "nest_in": NESTED_TWICE + "{{ a in [ns.v] }}",
    "nest_test": NESTED_TWICE + "{{ [a] | select('equalto', ns.v) | list | length }}",
    "nest_tuple_key": doubling("(1,)", "(ns.v, ns.v)", "{{ {ns.v: 1}[ns.v] }}"),
    "nest_format": doubling("[1]", "[ns.v, ns.v]", "{{ '%s' % [ns.v] }}"),
    "nest_join": doubling("[1]", "[ns.v, ns.v]", "{{ ns.v | join }}"),
    "nest_concat": doubling("[1]", "[ns.v, ns.v]", "{{ 'x' ~ ns.v }}"),
    "replace": doubling("'xx'", "ns.v.replace('x', 'xxxx')"),
    "replace_filter": doubling("'xx'", "ns.v | replace('x', 'xxxx')"),
    "replace_empty": doubling("'xx'", "ns.v.replace('', ns.v)"),
    "join": doubling("'xx'", "ns.v.join(ns.v)"),
    "join_filter": "{% set s = 'x' * 1000000 %}{{ range(90000) | join(s) }}",
    "join_generator": "{% set s = 'x' * 1000000 %}{{ range(90000) | map('string') | join(s) }}",
    "split": "{{ ('a b ' * 1900000).split() | length }}{{ ('a b ' * 1900000) | list | length }}",
    "format_width": "{{ '%1000000000d' % 1 }}",
    "format_star": "{{ '%*d' % (1000000000, 1) }}",
    "format_many": "{{ ('%999d' * 100000) % range(100000) }}",
    "format_key": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "format_filter": "{{ '%1000000000d' | format(1) }}",
    "format_method": "{{ '{:1000000000}'.format(1) }}",
    "format_nested": "{{ '{:{}}'.format(1, 1000000000) }}",
    "center": "{{ 'x'.center(10**9) }}",
    "zfill": "{{ 'x'.zfill(10**9) }}",
    "expandtabs": "{{ ('\t' * 1000000).expandtabs(1000) | length }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "indent": "{{ ('\n' * 1000000) | indent('x' * 1000000) }}",
    "indent_map": "{{ ['x'] | map('center', 10**9) | list }}",
    "tojson_indent": "{{ [[[1]]] | tojson(indent=10**9) }}",
    "round": "{{ 5 | round(-1000000000) }}",
    "sum": "{{ [[1]] | sum(start=[]) }}",
    "translate": "{{ 'x'.translate({120: 'y' * 1000}) }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "lipsum": "{{ lipsum(10**6) }}",
    "strftime": "{{ strftime_now('%1000000Y') }}",
    "macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "macro_tree": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "recursive_loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "call_block": "{% macro f(n) %}{% if n %}{% call f(n - 1) %}{% endcall %}{% call f(n - 1) %}{% endcall %}"
                  "{% endif %}{{ caller() }}{% endmacro %}{% call f(40) %}{% endcall %}",
    "shadowed": "{% set step = 0 %}{% set environment = 0 %}{% set context = 0 %}{% for i in range(99999) %}"
                "{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "class": "{{ ''.__class__.__mro__ }}",
    "class_item": "{{ ''['__class__']['__mro__'] }}",
    "class_attr": "{{ (messages | attr('__class__')).mro() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "macro_globals": "{% macro f() %}{% endmacro %}{{ f.__call__.__globals__.x }}",
    "format_class": "{{ '{0.__class__.__mro__}'.format(1) + '%s' % 1 * 0 }}{{ ''.__class__.x }}",
    "self": "{{ self._TemplateReference__context.environment.x }}",
    "mutation": "{{ messages.append(1) }}",
    "namespace_private": "{% set ns = namespace(__class__=1) %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'x' %}",
    "undefined": "{{ nothing.here }}",
    "syntax": "{% if %}",
    "unknown_filter": "{{ 1 | nothing }}",
    "huge_number": "{{ " + "9" * 10000 + " }}",
    "deep_expression": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep_list": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep_if": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "type_error": "{{ 1 + 'x' }}",
    "division": "{{ 1 / 0 }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(HOSTILE[name]).render(CHATS[0])
    assert time.perf_counter() - start < 8  # 2 seconds, on a machine shared with other tests
    assert re.fullmatch(r"The model's chat template [^\n]{1,400}\.", str(caught.value))


@pytest.mark.parametrize("name", ["concat", "captured_text", "multiply_list", "join_generator", "split", "format_many"])
def test_hostile_templates_take_little_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError):
            ChatTemplate(HOSTILE[name]).render(CHATS[0])
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()
