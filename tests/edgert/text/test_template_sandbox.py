"""Templates that do more than they may come to an end, and take little memory until then."""

import re
import tracemalloc

import pytest

from edgert.errors import TemplateError
from edgert.text import template_sandbox
from edgert.text.chat_template import ChatTemplate

CHAT = [{"role": "user", "content": "Hi  there, <b>you</b> & 'me'"}]

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
    "captured_value": "{% set s = 'x' * 4000000 %}{% set t %}" + "{{ s }}" * 1500 + "{% endset %}",
    "straight_line": "{% set s = 'x' * 4000000 %}{{ 1 }}" + "{% set t = s[1:] %}" * 1000,
    "compares": "{% set s = 'x' * 4000000 %}{% set t = 'x' * 4000000 %}" + "{{s==t}}" * 1500 + "{{ s * 9 }}",
    "long_chain": "{{ " + " and ".join(["1 == 1"] * 2000) + " }}",
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


@pytest.fixture(autouse=True)
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "SECONDS", 0.5)  # of the processor's time: other tests do not count


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_and_take_little_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError) as caught:
            ChatTemplate(HOSTILE[name]).render(CHAT)
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()
    assert re.fullmatch(r"The model's chat template [^\n]{1,400}\.", str(caught.value))
