"""How every kernel is compiled: by Numba, without the GIL, exceptions, or reordering of float operations."""

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(function: Callable[..., Any]) -> Any:
    """A function of numbers and addresses, compiled when first called from another."""
    return njit(error_model="numpy", nogil=True)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """The same, always melted into its caller: for pieces that pass vectors."""
    return njit(error_model="numpy", nogil=True, forceinline=True)(function)
