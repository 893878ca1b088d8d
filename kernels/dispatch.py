"""Choosing among kernels: by weight format, and one after another."""

from collections.abc import Mapping, Sequence
from typing import Any

from .decorators import inlined
from .formats import FORMATS


def by_format(kernels: Mapping[str, Any]) -> Any:
    """A function (form, *arguments) that calls the kernel of the weight format with code `form`."""
    (name, first), *rest = kernels.items()
    if not rest:
        @inlined
        def the_only(form, *arguments):
            return first(*arguments)

        return the_only
    code, others = FORMATS[name].code, by_format(dict(rest))

    @inlined
    def choose(form, *arguments):
        if form == code:
            return first(*arguments)
        return others(form, *arguments)

    return choose


def in_turn(parts: Sequence[Any]) -> Any:
    """A function (token, *arguments) that calls each part, which gives the first token that it leaves for the next."""
    first, *rest = parts
    if not rest:
        return first
    others = in_turn(rest)

    @inlined
    def all_of(token, *arguments):
        token = first(token, *arguments)
        return others(token, *arguments)

    return all_of
