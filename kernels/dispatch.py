"""Choosing among kernels: by a number, by weight format, and one after another."""

from collections.abc import Mapping, Sequence
from typing import Any

from .decorators import inlined
from .formats import FORMATS


def by_number(kernels: Mapping[int, Any]) -> Any:
    """A function (number, *arguments) that calls the kernel of that number."""
    (own, first), *rest = kernels.items()
    if not rest:
        @inlined
        def the_only(number, *arguments):
            return first(*arguments)

        return the_only
    others = by_number(dict(rest))

    @inlined
    def choose(number, *arguments):
        if number == own:
            return first(*arguments)
        return others(number, *arguments)

    return choose


def by_format(kernels: Mapping[str, Any]) -> Any:
    """A function (form, *arguments) that calls the kernel of the weight format with code `form`."""
    return by_number({FORMATS[name].code: kernel for name, kernel in kernels.items()})


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
