"""A Jinja sandbox that limits time and memory, and tells the template's own text from the text that it was given.

Written by hand, on top of Jinja's own sandbox, which hides Python's internals but lets a template loop, multiply
strings and nest lists without end, and no library that limits this, or knows who wrote a character, is known. Here
every string is a `Text` that counts against a limit and knows who wrote it. Before a template is compiled, its syntax
tree is rewritten: literals become Text, lists are counted, and loops and comparisons check the limit first.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

from .template_text import (
    ITEM,
    METHODS,
    OBJECT,
    OWN,
    Meter,
    RefusedError,
    Text,
    check_width,
    escaped,
    format_fields,
    safe,
)

SECONDS = 4.0
BUDGET = 64 << 20
"""Bytes that a rendering may create, in addition to those that it gets for its input."""
LARGEST_INTEGER_BITS = 4096

REFUSED_FILTERS = ("urlize", "striptags", "wordwrap", "xmlattr", "pprint", "random")
"""Filters that take more than linear time or are not deterministic; no chat template needs them."""
TEXT_FILTERS = {"trim", "upper", "lower", "capitalize", "title", "replace", "string", "length", "count", "default", "d",
                "safe", "tojson", "escape", "e", "forceescape", "int", "float", "indent", "first", "last", "format",
                "center", "truncate", "reverse"}
"""Filters that, for a string, neither make a list nor run Python code for each character."""
WIDTH_FILTERS = {"indent", "batch", "slice", "round", "truncate"}
LAZY_FILTERS = {"length", "count", "list", "first", "last", "items", "map", "select", "reject", "selectattr",
                "rejectattr", "default", "d", "reverse", "attr", "batch", "slice", "tojson", "join"}
"""Filters that do not look inside their items, or are counted as they go."""
COMPARISONS = {"eq", "==", "equalto", "ne", "!=", "lt", "<", "lessthan", "le", "<=", "gt", ">", "greaterthan", "ge",
               ">=", "in"}
"""Tests that look inside the values that they compare."""


class SandboxEnvironment(ImmutableSandboxedEnvironment):
    """Configured as transformers does (utils/chat_template_utils.py). Renders one template at a time."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self) -> None:
        # The optimizer would run constant expressions while compiling, outside any budget.
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_finalize,
                         extensions=[loopcontrols, GenerationTag])
        self._literals: dict[str, Text] = {}
        for name in REFUSED_FILTERS:
            del self.filters[name]
        self.filters |= {"tojson": self._tojson, "join": self._join, "indent": _indent,
                         "safe": lambda value: safe(self._meter.text(value)), "forceescape": self._escape,
                         "e": self._escape, "escape": self._escape}
        self.filters = {name: self._checked_filter(name, function) for name, function in self.filters.items()}
        for name in COMPARISONS:
            self.tests[name] = self._checked_test(cast(Callable[..., Any], self.tests[name]))
        self.globals = {"range": self.globals["range"], "dict": dict, "namespace": TemplateNamespace,
                        "cycler": self.globals["cycler"], "joiner": self.globals["joiner"],
                        "raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def render_within_limits(self, template: jinja2.Template, variables: Mapping[str, Any],
                             meter: Meter) -> tuple[str, bytes]:
        """Render; returns the text and its marks, OWN or GIVEN for each character.

        variables: all strings in them are Text of `meter`. Raises RefusedError, or whatever the template raises.
        """
        self._meter, self._literals = meter, {}
        text = self.concat(template.generate(variables))
        return str.__str__(text), text._given

    def concat(self, pieces: Iterable[Any]) -> Text:  # what Jinja puts outputs together with
        return self.own("").join(pieces)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _rewrite_children(tree)
        tree.set_environment(self)
        return tree

    # What the rewritten tree calls.

    def own(self, literal: str) -> Text:
        """A string that the template itself contains."""
        text = self._literals.get(literal)
        if text is None:
            text = self._literals[literal] = self._meter.text(literal, OWN)
        return text

    def joined(self, *values: Any) -> Text:
        return self.own("").join([self._meter.text(value) for value in values])

    def keep(self, value: Any) -> Any:
        return self._meter.keep(value)

    def measured(self, value: Any) -> Any:
        """Returns `value` if writing it out would be within the limit: comparing and hashing walk through all of it."""
        self._meter.measure(value)
        return value

    def steps(self, values: Any) -> Iterator[Any]:
        for value in values:
            self._meter.spend()
            yield value

    # What Jinja calls.

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            if operator == "**":
                _check_bits(abs(right) * left.bit_length())
            elif operator == "*":
                _check_bits(left.bit_length() + right.bit_length())
        elif operator == "*":
            for items, times in ((left, right), (right, left)):
                if isinstance(items, (list, tuple)) and isinstance(times, int):
                    self._meter.afford(ITEM * len(items) * max(times, 0))
        result = super().call_binop(context, operator, left, right)
        return self._meter.keep(result) if isinstance(result, (list, tuple)) else result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if owner is __self:
            return __obj(*args)
        name = getattr(__obj, "__name__", "")
        if isinstance(owner, (int, float, bytes, type)) or (isinstance(owner, str) and name not in METHODS):
            raise RefusedError(f"it calls {name}, which chat templates may not")
        if not isinstance(owner, str) and not isinstance(__obj, Macro):  # those compare and hash what they are given
            __self._meter.measure((owner if name in ("index", "count") else None, args, kwargs))
        return __self._meter.keep(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        text = getattr(value, "__self__", None)
        if not isinstance(text, Text) or value.__name__ != "format":
            return None
        formatter = SandboxedFormatter(self)
        return lambda *args, **kwargs: format_fields(text, formatter, args, kwargs)

    def _checked_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            first = 0 if getattr(function, "jinja_pass_arg", None) is None else 1
            value, rest = args[first], args[first + 1:]
            if name in WIDTH_FILTERS:
                check_width(*rest, *kwargs.values())
            if name == "sum" and not isinstance(rest[1] if len(rest) > 1 else kwargs.get("start", 0), (int, float)):
                raise RefusedError("it sums what are not numbers")
            self._meter.measure((rest, kwargs))
            if isinstance(value, str):
                self._meter.afford(0 if name in TEXT_FILTERS else OBJECT * len(value))
            elif name not in LAZY_FILTERS:
                if isinstance(value, Iterator):
                    value = list(value)  # it must be measured before it is used
                self._meter.measure(value)
            return self._meter.keep(function(*args[:first], value, *rest, **kwargs))

        return checked

    def _checked_test(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            self._meter.measure(args)
            return function(*args, **kwargs)

        return checked

    def _join(self, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> Text:
        if attribute is not None:
            values = map(make_attrgetter(self, attribute), values)
        return self._meter.text(d).join([self._meter.text(value) for value in values])

    def _escape(self, value: Any) -> Text:
        text = self._meter.text(value)
        return text if text._safe else escaped(text)

    def _tojson(self, value: Any, ensure_ascii: bool = False, indent: int | str | None = None,
                separators: tuple[str, str] | None = None, sort_keys: bool = False) -> Text:
        check_width(*[indent] if indent is not None else [])
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return self.own("").join([self._meter.text(part) for part in encoder.iterencode(value)])


class TemplateNamespace(Namespace):
    """As transformers': names must not begin with an underscore. Shown without its content, which may be endless."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            TemplateNamespace._check(name)
        Namespace.__init__(cast(Namespace, self), attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        TemplateNamespace._check(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace may not have the name {name!r}")


class GenerationTag(Extension):
    """The tag `{% generation %}`, which marks the assistant's text for training: renders its body unchanged."""

    tags = {"generation"}  # noqa: RUF012 declared so by Jinja

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


@jinja2.pass_context  # a finalizer without a context would also be run while compiling
def _finalize(context: Context, value: Any) -> Text:
    meter = cast(SandboxEnvironment, context.environment)._meter
    text = meter.text(value)
    meter.spend(len(text))
    return text


def _indent(text: Text, width: int | str = 4, first: bool = False, blank: bool = False) -> Text:
    """Jinja's filter (filters.py, do_indent), keeping the marks."""
    indention = text._meter.text(width if isinstance(width, str) else " " * width, OWN)
    newline = text._meter.text("\n", OWN)
    lines = cast(list[Text], (text + newline).splitlines())
    rest = [indention + line if blank or line else line for line in lines[1:]]
    indented = newline.join([lines[0], *rest])
    return indention + indented if first else indented


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > 100 or re.search(r"\d{3}", form):
        raise RefusedError("it asks for a date in a strange form")
    return datetime.now().strftime(form)


def _check_bits(bits: int) -> None:
    if bits > LARGEST_INTEGER_BITS:
        raise RefusedError("it makes a number of too many digits")


def _rewrite_children(node: nodes.Node) -> None:
    for name in node.fields:
        value = getattr(node, name)
        if isinstance(value, nodes.Node):
            setattr(node, name, _replacement(value))
        elif isinstance(value, list):
            value[:] = [_replacement(item) if isinstance(item, nodes.Node) else item for item in value]


def _replacement(node: nodes.Node) -> nodes.Node:
    _rewrite_children(node)
    match node:
        case nodes.TemplateData():
            return _call("own", nodes.Const(node.data))
        case nodes.Const(value=str()):
            return _call("own", node)
        case nodes.Concat():
            return _call("joined", *node.nodes)
        case nodes.Tuple(ctx="load"):
            return _call("measured", _call("keep", node))
        case nodes.List() | nodes.Dict() | nodes.Getitem(arg=nodes.Slice()):
            return _call("keep", node)
        case nodes.For():
            node.iter = _call("steps", cast(nodes.Expr, node.iter))
        case nodes.Compare():
            node.expr = _call("measured", node.expr)
            for operand in node.ops:
                operand.expr = _call("measured", operand.expr)
    return node


def _call(name: str, *args: nodes.Expr) -> nodes.Call:
    """A call that no name in the template can shadow."""
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)
