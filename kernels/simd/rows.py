"""Words for several rows at once: what one word, or a few, does to each of them, written out.

A value of type `rows_of(vector, n)` is n vectors, which LLVM keeps in registers. Numba has no tuple of vectors that it
would loop over at no cost; functions written out for each number of rows took five times as long to compile.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from .vector import Vector, address, operation


@functools.cache
def rows_of(vector: Vector, count: int) -> Vector:
    """The type of `count` vectors."""
    return Vector(f"{vector.name}_{count}", ir.ArrayType(vector.lowered, count))


class Row(NamedTuple):
    """A parameter of which each row has its own vector."""

    vector: Vector


class At:
    """A parameter that is an address for each row: the first row's and, as another argument, a stride in bytes."""


AT = At()


def for_rows(step: Callable[..., Any], count: int, result: Any, *parameters: Any) -> Any:
    """A word that does `step(builder, *arguments) -> value` for each of `count` rows.

    parameters: Row, AT, or the type of a value that all rows share. The word gives rows of `result`, or nothing where
    that is void. step: as for `operation`; of a word that is there its `emit`.
    """
    kinds: list[types.Type] = []
    for parameter in parameters:
        if isinstance(parameter, Row):
            kinds.append(rows_of(parameter.vector, count))
        else:
            kinds += [address, address] if parameter is AT else [parameter]

    def emit(b: Any, *values: Any) -> Any:
        rows = None if result is types.void else ir.Constant(ir.ArrayType(result.lowered, count), ir.Undefined)
        for i in range(count):
            given, arguments = iter(values), []
            for parameter in parameters:
                value = next(given)
                if isinstance(parameter, Row):
                    value = b.extract_value(value, i)
                elif parameter is AT:
                    value = b.add(value, b.mul(next(given), ir.Constant(value.type, i)))
                arguments.append(value)
            made = step(b, *arguments)
            if rows is not None:
                rows = b.insert_value(rows, made, i)
        return rows

    emit.__name__ = f"{getattr(step, '__name__', 'step')}_{count}"
    return operation(result if result is types.void else rows_of(result, count), *kinds)(emit)
