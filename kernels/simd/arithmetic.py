"""Arithmetic on 16 float32 lanes. Sums over lanes go in one fixed order."""

from llvmlite import ir
from numba import types

from .vector import F32, I32, I64, V32, VF, call, constant, f32x16, i32x16, operation, pieces
from .vector import splat as all_lanes

_LANES = ir.Constant(V32, list(range(16)))


@operation(f32x16)
def zero_f32(_b):
    """16 zeros."""
    return constant(VF, 0.0)


@operation(f32x16, types.float32)
def splat(b, x):
    """One float32 in all lanes."""
    return all_lanes(b, VF, x)


@operation(f32x16, f32x16, f32x16)
def add(b, x, y):
    """x + y"""
    return b.fadd(x, y)


@operation(f32x16, f32x16, f32x16)
def sub(b, x, y):
    """x - y"""
    return b.fsub(x, y)


@operation(f32x16, f32x16, f32x16)
def mul(b, x, y):
    """x * y"""
    return b.fmul(x, y)


@operation(f32x16, f32x16, f32x16)
def div(b, x, y):
    """x / y"""
    return b.fdiv(x, y)


@operation(f32x16, f32x16, f32x16, f32x16)
def fma(b, x, y, z):
    """x * y + z, rounded once."""
    return call(b, "llvm.fma.v16f32", VF, x, y, z)


@operation(f32x16, f32x16, f32x16)
def maximum(b, x, y):
    """The larger of the two."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@operation(f32x16, f32x16, f32x16)
def minimum(b, x, y):
    """The smaller of the two."""
    return b.select(b.fcmp_ordered("<", x, y), x, y)


@operation(f32x16, f32x16, f32x16, f32x16, f32x16)
def where_less(b, x, y, less, other):
    """`less` in the lanes where x < y, `other` in the rest."""
    return b.select(b.fcmp_ordered("<", x, y), less, other)


@operation(f32x16, f32x16)
def absolute(b, x):
    """|x|"""
    return call(b, "llvm.fabs.v16f32", VF, x)


@operation(i32x16, f32x16)
def round_i32(b, x):
    """To the nearest int32, halves to even; |x| < 2**31."""
    return b.fptosi(call(b, "llvm.rint.v16f32", VF, x), V32)


@operation(f32x16, i32x16)
def power_of_two(b, n):
    """2**n for n in -126..127."""
    return b.bitcast(b.shl(b.add(n, constant(V32, 127)), constant(V32, 23)), VF)


@operation(f32x16, f32x16, types.int64, types.float32)
def keep_first(b, x, count, fill):
    """The first `count` lanes of x, `fill` in the others."""
    kept = b.icmp_signed("<", _LANES, all_lanes(b, V32, b.trunc(count, I32)))
    return b.select(kept, x, all_lanes(b, VF, fill))


@operation(f32x16, f32x16, types.int64, types.float32)
def keep_from(b, x, first, fill):
    """The lanes of x from number `first` on, `fill` in those before."""
    kept = b.icmp_signed(">=", _LANES, all_lanes(b, V32, b.trunc(first, I32)))
    return b.select(kept, x, all_lanes(b, VF, fill))


@operation(types.float32, f32x16)
def reduce_max(b, x):
    """The largest lane."""
    while x.type.count > 1:
        low, high = pieces(b, x, 2)
        x = b.select(b.fcmp_ordered(">", low, high), low, high)
    return b.extract_element(x, ir.Constant(I32, 0))


@operation(types.float32, f32x16)
def reduce_add(b, x):
    """The sum of the lanes, halves added to halves."""
    while x.type.count > 1:
        low, high = pieces(b, x, 2)
        x = b.fadd(low, high)
    return b.extract_element(x, ir.Constant(I32, 0))


@operation(types.int64, i32x16)
def reduce_add_i32(b, x):
    """The sum of the lanes."""
    while x.type.count > 1:
        low, high = pieces(b, x, 2)
        x = b.add(low, high)
    return b.sext(b.extract_element(x, ir.Constant(I32, 0)), I64)


@operation(types.float32, types.float32)
def square_root(b, x):
    """The square root of one float32."""
    return call(b, "llvm.sqrt.f32", F32, x)
