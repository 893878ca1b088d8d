"""Compiles every kernel into one object file. A program of its own, so that what Numba and LLVM allocate goes with it.

    python -m edgert.kernels.compiler OBJECT

writes OBJECT, printing one line for each kernel before it is compiled: its number, how many there are, its name.
EDGERT_SIMD chooses the instruction set (simd/target.py).
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .simd.target import Target, choose

ENTRY = "edgert_run"
"""The object's one symbol: int32 (void **result, void **exception, int64 program, count, state, thread), Numba's own
calling convention; result and exception are not used, and 0 comes back."""


def set_numba_target(target: Target) -> None:
    """Make Numba compile for a target; before Numba is imported. Optimizing comes at the end, once for all kernels."""
    os.environ["NUMBA_OPT"] = "0"
    if target.cpu is not None:
        os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = target.cpu, target.features or ""


def _kernels() -> Iterator[tuple[str, Any, int]]:
    """Name, dispatcher and number of arguments of each kernel, in an order in which none waits for a later one."""
    from . import (
        attention,
        combine,
        embedding,
        experts,
        feed_forward,
        interpreter,
        linear,
        masses,
        norm,
        one_token,
        planes,
        reading,
        residual,
        rope,
        sparse,
    )
    yield "embedding", embedding.embedding, 2
    yield "matrix", linear.linear, 3
    yield "learned positions", embedding.positions, 3
    yield "norm", norm.norm, 2
    yield "layer norm", norm.layer_norm, 2
    yield "quantize", norm.quantize, 2
    yield "head norms", residual.head_norms, 2
    yield "residual stream", residual.add_part, 2
    yield "logits", residual.scale_logits, 2
    yield "rotary positions", rope.rope, 2
    yield "attention", attention.attention, 3
    yield "attention, parts", combine.combine, 2
    yield "attention, masses", masses.masses, 3
    yield "feed-forward, up", feed_forward.up, 3
    yield "feed-forward, down", feed_forward.down, 3
    yield "feed-forward, release", feed_forward.release_groups, 2
    yield "feed-forward, one token", one_token.neurons, 3
    yield "one token, sums", one_token.gather, 2
    yield "feed-forward, planes", planes.join_groups, 2
    yield "sparse neurons, chosen", sparse.choose, 2
    yield "sparse neurons, asked for", sparse.ask, 2
    yield "sparse neurons, one token", sparse.one, 3
    yield "sparse neurons, sums", sparse.gather, 2
    yield "sparse neurons, up", sparse.up, 3
    yield "sparse neurons, down", sparse.down, 3
    yield "experts, chosen", experts.route, 2
    yield "experts, asked for", experts.dispatch, 2
    yield "experts", experts.experts, 3
    yield "experts, sums", experts.expert_sums, 2
    yield "reading", reading.read, 2
    yield "interpreter", interpreter.enter, 4


def _machine(target: Target) -> Any:
    import llvmlite.binding as llvm
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = target.cpu, target.features
    if cpu is None:
        cpu = os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name()
        features = os.environ.get("NUMBA_CPU_FEATURES") or llvm.get_host_cpu_features().flatten()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="small")


def _only_entry(text: str, symbol: str, machine: Any) -> Any:
    """The LLVM module of `text`, optimized, with nothing in it but what `symbol`, renamed to ENTRY, needs."""
    import llvmlite.binding as llvm
    module = llvm.parse_assembly(text.replace(f"@{symbol}(", f"@{ENTRY}(").replace(f"@{symbol} ", f"@{ENTRY} "))
    for function in module.functions:
        if not function.is_declaration and function.name != ENTRY:
            function.linkage = "internal"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(3))
    unused = llvm.create_new_module_pass_manager()
    unused.add_global_dead_code_eliminate_pass()
    unused.run(module, builder)
    builder.getModulePassManager().run(module, builder)
    return module


def compile_object(report: Any = lambda number, count, name: None) -> bytes:
    """The object file of all kernels for the chosen target, in the platform's own format."""
    target = choose()
    set_numba_target(target)
    from numba import types

    from .numba_to_llvm import only_translated
    kernels = list(_kernels())
    with only_translated():
        for number, (name, dispatcher, arguments) in enumerate(kernels, 1):
            report(number, len(kernels), name)
            dispatcher.compile((types.int64,) * arguments)
    entry = kernels[-1][1]
    (overload,) = entry.overloads.values()
    machine = _machine(target)
    text = entry.inspect_llvm(overload.signature.args)
    return bytes(machine.emit_object(_only_entry(text, overload.fndesc.mangled_name, machine)))


def main() -> int:
    start = time.perf_counter()
    target = Path(sys.argv[1])
    data = compile_object(lambda number, count, name: print(number, count, name, flush=True))
    target.write_bytes(data)
    print(f"# {len(data)} bytes in {time.perf_counter() - start:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
