"""The instruction sets of this machine that tests go through."""

import os

from edgert.kernels.simd.target import X86, executable_targets, machine

_EVERY = [target.name for target in executable_targets()]
_PLAIN_TOO = machine() != X86 or bool(os.environ.get("EDGERT_TEST_ALL")) or len(_EVERY) == 1

TESTED = [name for name in _EVERY if name != "plain" or _PLAIN_TOO]
"""Compiling `plain` for x86-64 takes longer than all others together, and no processor of the last ten years needs it:
`make test-all` has it, and `make arm64`, for processors that do."""
