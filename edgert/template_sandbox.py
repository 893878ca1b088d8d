"""A Jinja sandbox that bounds time and memory, for templates from strangers.

Jinja's own sandbox hides Python's internals but lets a template loop, multiply strings and nest lists without end. Here
the syntax tree is rewritten before it is compiled, so that each loop, comparison and growing operation first asks
`SandboxEnvironment`, which keeps a budget of characters and items and a deadline. No single operation may be asked for
more than the budget holds, so none runs long past the deadline.
"""

import functools
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

SECONDS = 2.0
BUDGET = 8 << 20
"""Characters and items (at ITEM each) that a rendering may make, besides BUDGET_PER_INPUT for each of the messages'."""
BUDGET_PER_INPUT = 64
ITEM = 64
LARGEST_INTEGER_BITS = 4096
LARGEST_WIDTH = 1000
"""Largest number or text that a filter or method may be given to pad, indent, cut or batch with."""

REFUSED_FILTERS = ("urlize", "striptags", "wordwrap", "xmlattr", "pprint", "random", "filesizeformat")
"""Filters that take more than linear time or are not deterministic; no chat template needs them."""
CHEAP_FILTERS = {"trim", "upper", "lower", "capitalize", "replace", "string", "length", "count", "default", "d", "safe",
                 "tojson", "escape", "e", "forceescape", "int", "float", "indent", "first", "last", "format"}
"""Filters that, of a string, neither make a list nor run Python code for each character."""
COMPARISONS = {"eq", "==", "equalto", "ne", "!=", "lt", "<", "lessthan", "le", "<=", "gt", ">", "greaterthan", "ge",
               ">=", "in"}
"""Tests that look inside the items they are given."""
WIDE_FORMAT = re.compile(r"%[-+ #0]*(\*|\d{4}|\d*\.(\*|\d{4}))|\{[^{}]*(\{|:[^{}]*\d{4})")
WIDTH_FILTERS = {"center", "indent", "batch", "slice", "tojson", "truncate", "round"}
LAZY_FILTERS = {"length", "count", "list", "first", "last", "items", "map", "select", "reject", "selectattr",
                "rejectattr", "default", "d", "reverse", "attr", "batch", "slice"}
"""Filters that do not look inside the items they are given."""
WIDTH_METHODS = {"center", "ljust", "rjust", "zfill", "expandtabs"}
REFUSED_METHODS = {"translate", "maketrans", "encode", "format_map", "to_bytes", "from_bytes", "fromkeys"}


class RefusedError(Exception):
    """The template does more than a chat template may."""


class SandboxEnvironment(ImmutableSandboxedEnvironment):
    """Configured as transformers does (utils/chat_template_utils.py). Renders one template at a time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        # The optimizer would run constant expressions while compiling, outside any budget.
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_finalize,
                         extensions=[loopcontrols, GenerationTag])
        self._left = 0
        self._deadline = 0.0
        for name in REFUSED_FILTERS:
            del self.filters[name]
        self.filters["tojson"] = _tojson
        self.filters = {name: self._checked_filter(name, function) for name, function in self.filters.items()}
        for name in COMPARISONS:
            self.tests[name] = self._checked_test(cast(Callable[..., Any], self.tests[name]))
        self.globals = {"range": self.globals["range"], "dict": dict, "namespace": TemplateNamespace,
                        "cycler": self.globals["cycler"], "joiner": self.globals["joiner"],
                        "raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def render_within_limits(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        """Raises RefusedError, or whatever the template raises."""
        self._left = 1 << 62
        self._deadline = time.monotonic() + SECONDS
        self._left = BUDGET + BUDGET_PER_INPUT * self._size(variables)
        pieces = []
        for piece in template.generate(variables):
            self.step(len(piece))
            pieces.append(piece)
        return "".join(pieces)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _count_bodies(tree)
        _rewrite_children(tree)
        tree.set_environment(self)
        return tree

    # What the rewritten tree calls.

    def step(self, cost: int = 1) -> bool:
        """Spends `cost`. Always true, to be put before any condition. Raises RefusedError."""
        self._left -= cost + 1
        if self._left < 0:
            raise RefusedError("it makes too much text")
        if time.monotonic() > self._deadline:
            raise RefusedError(f"it takes longer than {SECONDS:g} seconds")
        return True

    def measured(self, value: Any) -> Any:
        """`value`, if it could be written out within the budget: comparing and hashing walk through all of it."""
        self.step()
        self._size(value)
        return value

    def spent(self, value: Any) -> Any:
        """`value`, after spending its own size, without what its items hold."""
        if isinstance(value, Collection) and not isinstance(value, range):  # ranges hold nothing
            self.step(len(value) * (1 if isinstance(value, str) else ITEM))
        return value

    def written(self, value: Any) -> str:
        self.step(self._size(value))
        return str(value)

    def joined(self, *values: Any) -> str:
        return "".join([self.written(value) for value in values])

    def _size(self, value: Any) -> int:
        """Characters and items of `value` written out, however often a part of it recurs. Raises RefusedError."""
        if isinstance(value, str):
            return len(value)
        size = 0
        pending = [value]
        while pending:
            value = pending.pop()
            size += len(value) if isinstance(value, str) else ITEM
            if isinstance(value, Mapping):
                pending.extend(value.keys())
                pending.extend(value.values())
            elif isinstance(value, Collection) and not isinstance(value, (str, range)):
                pending.extend(value)
            if size + len(pending) > self._left:
                raise RefusedError("it makes too much text")
        return size

    # What Jinja calls.

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "*" and not numbers:
            times, value = (left, right) if isinstance(left, int) else (right, left)
            self.step(max(times, 0) * max(self._size(value), 1) if isinstance(times, int) else 1)
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, right)
        elif operator == "+" and not numbers:
            self.step(self._size(left) + self._size(right) if isinstance(left, (str, tuple)) else
                      sum(len(side) * ITEM for side in (left, right) if isinstance(side, Collection)))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.step(self._bits(abs(right) * left.bit_length()))
        elif operator == "*" and isinstance(left, int) and isinstance(right, int):
            self.step(self._bits(left.bit_length() + right.bit_length()))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if owner is __self:
            return __obj(*args)
        __self.step()
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps str.format
        owner = getattr(method, "__self__", None)
        name = getattr(method, "__name__", "")
        if isinstance(owner, (str, bytes, int, float, list, tuple, dict, type)):
            __self._check_method(owner, name, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        return __self.spent(result)

    def _check_method(self, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in REFUSED_METHODS or isinstance(owner, (bytes, type)):
            raise RefusedError(f"it calls {name}, which chat templates may not")
        arguments = self._size(args) + self._size(kwargs)
        self.step(arguments)
        if name in WIDTH_METHODS:
            _check_widths(args, kwargs)
        if not isinstance(owner, str):
            self.step(self._size(owner) if name in ("index", "count") else 1)
        elif name == "format":
            self._check_format(owner, (args, kwargs))
        elif name == "expandtabs":
            self.step(LARGEST_WIDTH * owner.count("\t"))
        elif name == "replace" and args and isinstance(args[0], str):
            self.step(self._replaced(owner, args[0], arguments))
        elif name == "join" and args:
            self.step(len(owner) * (len(args[0]) if isinstance(args[0], Collection) else BUDGET))
        elif name in ("split", "rsplit", "splitlines"):
            separator = args[0] if args and isinstance(args[0], str) else ""
            self.step(len(owner) + ITEM * (owner.count(separator) if separator else len(owner) // 2))
        else:
            self.step(len(owner))

    @staticmethod
    def _replaced(text: str, old: str, longest: int) -> int:
        return len(text) + (text.count(old) + 1) * longest

    @staticmethod
    def _bits(bits: int) -> int:
        if bits > LARGEST_INTEGER_BITS:
            raise RefusedError("it makes a number of too many digits")
        return bits

    def _check_format(self, text: str, values: Any) -> None:
        if WIDE_FORMAT.search(text) or ("%(" in text and re.search(r"\d{4}|\*", text)):
            raise RefusedError("it formats text to too large a width")
        fields = text.count("%") + text.count("{")
        self.step(len(text) + fields * (LARGEST_WIDTH + self._size(values)))

    def _checked_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            given = args[1:] if getattr(function, "jinja_pass_arg", None) is not None else args
            if name in WIDTH_FILTERS:
                _check_widths(given[1:], kwargs)
            value = given[0] if given else None
            if name in ("join", "sum", "sort", "unique", "groupby") and isinstance(value, Iterator):
                value = list(value)  # it must be measured before it is used
                args = (*args[:-len(given)], value, *given[1:])
            if isinstance(value, str):
                self.step(1 if name in CHEAP_FILTERS else ITEM * len(value))
            elif name not in LAZY_FILTERS:
                self.measured(value)
            self.measured(given[1:])
            self.measured(kwargs)
            if name == "join":
                separator = given[1] if len(given) > 1 else kwargs.get("d", "")
                self.step(len(str(separator)) * len(value) if isinstance(value, Collection) else 1)
            elif name == "replace" and len(given) > 2:
                self.step(self._replaced(str(value), str(given[1]), len(str(given[2]))))
            elif name == "replace":
                raise RefusedError("it names the arguments of replace")
            elif name == "indent":
                self.step((str(value).count("\n") + 1) * LARGEST_WIDTH)
            elif name == "format":
                self._check_format(str(value), (given[1:], kwargs))
            elif name == "sum" and not isinstance(given[2] if len(given) > 2 else kwargs.get("start", 0), (int, float)):
                raise RefusedError("it sums what are not numbers")
            elif name == "tojson":
                self.step(self._size(value) * (LARGEST_WIDTH if given[1:] or kwargs else 1) // ITEM)
            return self.spent(function(*args, **kwargs))

        return checked

    def _checked_test(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            self.measured(args)
            return function(*args, **kwargs)

        return checked


class TemplateNamespace(Namespace):
    """As transformers': no underscored names. Never written out: namespaces may hold each other without end."""

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
    """`{% generation %}`, which marks the assistant's text for training: its body, as it stands."""

    tags = {"generation"}  # noqa: RUF012 declared so by Jinja

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


@jinja2.pass_context  # a finalizer without a context would also be run while compiling
def _finalize(context: Context, value: Any) -> str:
    environment = cast(SandboxEnvironment, context.environment)
    return environment.written(value)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | str | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > 100 or re.search(r"\d{3}", form):
        raise RefusedError("it asks for a date in a strange form")
    return datetime.now().strftime(form)


def _check_widths(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        widest = abs(value) if isinstance(value, (int, float)) else 0
        if isinstance(value, Collection):
            widest = max([len(value), *(len(part) for part in value if isinstance(part, str))])
        if widest > LARGEST_WIDTH:
            raise RefusedError("it pads or cuts text to too large a width")


# The rewriting: calls of `step`, `measured`, `spent` and `joined` go wherever time or memory may grow.


def _count_bodies(tree: nodes.Template) -> None:
    """Has every body that can run more than once spend a step and the text in it."""
    for body in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block, nodes.FilterBlock))):
        text = sum(len(data.data) for data in body.find_all(nodes.TemplateData))
        cast(Any, body).body.insert(0, nodes.ExprStmt(_call("step", nodes.Const(text)), lineno=body.lineno))
        if isinstance(body, nodes.For) and body.test is not None:
            body.test = nodes.And(_call("step"), body.test)


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
        case nodes.Concat():
            return _call("joined", *node.nodes)
        case nodes.Tuple(ctx="load"):
            return _call("measured", _call("spent", node))
        case nodes.List() | nodes.Dict() | nodes.Getitem(arg=nodes.Slice()):
            return _call("spent", node)
        case nodes.Compare():
            node.expr = _call("measured", node.expr)
            for operand in node.ops:
                operand.expr = _call("measured", operand.expr)
    return node


def _call(name: str, *args: nodes.Expr) -> nodes.Call:
    """A call that no name in the template can shadow."""
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)
