"""Numba as a translator to LLVM's language and no more, which takes half of the time that it takes by itself.

By itself it also makes two more functions of each, to be called from Python and from C, and machine code of all three.
Nothing of that is used: `compiler` makes machine code once, of everything together. What is to be melted into its
caller is so as before, module by module: left to the end, the matrices' loops came out 4 % slower.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from numba.core.codegen import CPUCodeLibrary
from numba.core.cpu import CPUContext, _dynfunc


@contextlib.contextmanager
def only_translated() -> Iterator[None]:
    """Within it, what Numba compiles has no machine code and cannot be called."""
    with contextlib.ExitStack() as replaced:
        for of, name, by in ((CPUContext, "create_cpython_wrapper", _nothing),
                             (CPUContext, "create_cfunc_wrapper", _nothing),
                             (CPUContext, "get_executable", _name_of),
                             (CPUCodeLibrary, "_optimize_functions", _set_layout),
                             (CPUCodeLibrary, "_finalize_final_module", _end)):
            replaced.enter_context(mock.patch.object(of, name, by))
        yield


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _name_of(_: Any, library: Any, function: Any, environment: Any) -> Any:
    """What Numba knows the function by; it asks for a built-in function of its own kind. At address 0."""
    library._ensure_finalized()
    return _dynfunc.make_function(function.lookup_module(), function.qualname, "", 0, environment, (library,))


def _set_layout(library: Any, module: Any) -> None:
    module.data_layout = library._codegen._data_layout


def _end(library: Any) -> None:
    library._finalized = True
