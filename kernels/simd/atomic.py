"""Atomics for the thread team: counters, flags, the time, and what to do while waiting."""

from llvmlite import ir
from numba import types
from numba.core.cgutils import alloca_once

from .target import ARM, choose
from .vector import I64, address, call, operation

_ON_ARM = choose().machine == ARM


def _pointer(b, at):
    return b.inttoptr(at, I64.as_pointer())


@operation(types.int64, address, types.int64)
def fetch_add(b, at, amount):
    """Add to the int64 at an address; what was there before."""
    return b.atomic_rmw("add", _pointer(b, at), amount, "acq_rel")


@operation(types.int64, address)
def load_acquire(b, at):
    """The int64 at an address; later accesses stay later."""
    return b.load_atomic(_pointer(b, at), "acquire", 8)


@operation(types.void, address, types.int64)
def store_release(b, at, value):
    """An int64 to an address; earlier accesses stay earlier."""
    b.store_atomic(value, _pointer(b, at), "release", 8)


@operation(types.void)
def pause(b):
    """Tell the processor that this is a waiting loop."""
    if _ON_ARM:
        call(b, "llvm.aarch64.hint", ir.VoidType(), ir.Constant(ir.IntType(32), 1))
    else:
        call(b, "llvm.x86.sse2.pause", ir.VoidType())


@operation(types.void, address, types.int64, types.int64)
def call_function(b, function, first, second):
    """Call the C function at an address with two integers; one that takes a single one never sees the other."""
    kind = ir.FunctionType(ir.VoidType(), [I64, I64])
    b.call(b.inttoptr(function, kind.as_pointer()), [first, second])


@operation(types.int64, types.int64, types.int64, address, types.int64, types.int64)
def call_preadv(b, function, file, pieces, count, offset):
    """What the C function preadv at an address returns."""
    kind = ir.FunctionType(I64, [ir.IntType(32), I64, ir.IntType(32), I64])
    narrow = (b.trunc(value, ir.IntType(32)) for value in (file, count))
    handle, many = narrow
    return b.call(b.inttoptr(function, kind.as_pointer()), [handle, pieces, many, offset])


@operation(types.int64, types.int64, types.int64)
def clock_ns(b, function, clock_id):
    """The time in nanoseconds, by the C function clock_gettime at an address and its first argument."""
    time = alloca_once(b, ir.ArrayType(I64, 2))
    kind = ir.FunctionType(ir.VoidType(), [I64, I64])
    b.call(b.inttoptr(function, kind.as_pointer()), [clock_id, b.ptrtoint(time, I64)])
    seconds, nanoseconds = (b.extract_value(b.load(time), i) for i in range(2))
    return b.add(b.mul(seconds, ir.Constant(I64, 1_000_000_000)), nanoseconds)
