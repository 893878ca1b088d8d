"""Loops that are written out: the same step for each of a few rows, whose vectors stay in registers.

A tuple holds one vector (or one tuple of vectors) for each row. Numba compiles a function for each length.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .decorators import inlined
from .formats import FORMATS


def repeated(make: Callable[[], Any], count: int) -> Any:
    """A function that gives `count` times what `make` gives."""
    if count == 1:
        @inlined
        def one():
            return (make(),)

        return one
    fewer = repeated(make, count - 1)

    @inlined
    def several():
        return (make(), *fewer())

    return several


def for_rows(step: Callable[..., Any], count: int) -> Any:
    """A function (shared, at, stride, values) -> the `count` results of step(shared, at + i * stride, values[i])."""
    last = count - 1
    if not last:
        @inlined
        def one(shared, at, stride, values):
            return (step(shared, at, values[0]),)

        return one
    fewer = for_rows(step, last)

    @inlined
    def several(shared, at, stride, values):
        return (*fewer(shared, at, stride, values[:last]), step(shared, at + last * stride, values[last]))

    return several


def for_rows_of_two(step: Callable[..., Any], count: int) -> Any:
    """The same with two values a row: step(shared, at + i * stride, first[i], second[i])."""
    last = count - 1
    if not last:
        @inlined
        def one(shared, at, stride, first, second):
            return (step(shared, at, first[0], second[0]),)

        return one
    fewer = for_rows_of_two(step, last)

    @inlined
    def several(shared, at, stride, first, second):
        return (*fewer(shared, at, stride, first[:last], second[:last]),
                step(shared, at + last * stride, first[last], second[last]))

    return several


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
