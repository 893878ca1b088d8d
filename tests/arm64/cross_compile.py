"""Compiles the kernels for 64-bit ARM on another machine, in a fifth of the time that it takes in the emulator.

    EDGERT_SIMD=TARGET NUMBA_CPU_NAME=... NUMBA_CPU_FEATURES=... python cross_compile.py OBJECT

Numba compiles for the process it runs in; here it takes that for one on ARM. Nothing that it makes is called. What it
makes is checked where it is run.
"""

import platform
import sys
from pathlib import Path

import llvmlite.binding as llvm
from llvmlite.binding import targets

TRIPLE = "aarch64-unknown-linux-gnu"


def main() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    platform.machine = lambda: "aarch64"
    for module in (llvm, targets):
        module.get_process_triple = module.get_default_triple = lambda: TRIPLE
    llvm.Target.from_default_triple = classmethod(lambda cls: cls.from_triple(TRIPLE))
    from edgert.kernels.compiler import compile_object
    Path(sys.argv[1]).write_bytes(compile_object())


if __name__ == "__main__":
    main()
