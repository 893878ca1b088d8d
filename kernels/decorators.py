"""How every kernel is compiled: by Numba, without the GIL, exceptions, or reordering of float operations."""

from collections.abc import Callable
from typing import Any

from numba import njit, types


def kernel(function: Callable[..., Any]) -> Any:
    """A function of numbers and addresses, compiled when first called from another.

    Once, whatever it is called with: Numba would make another of it, and of all that it calls, where an argument is
    written as a number, and 40 % of all machine code was copies of that kind.
    """
    dispatcher: Any = njit(error_model="numpy", nogil=True)(function)
    template_for = dispatcher.get_call_template

    def get_call_template(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        return template_for(tuple(types.unliteral(each) for each in arguments), keywords)

    dispatcher.get_call_template = get_call_template
    return dispatcher


def inlined(function: Callable[..., Any]) -> Any:
    """The same, always melted into its caller: for pieces that pass vectors."""
    return njit(error_model="numpy", nogil=True, forceinline=True)(function)
