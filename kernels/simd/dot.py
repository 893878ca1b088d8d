"""Integer dot products: 64 weights by 64 activations into 16 lanes, four to a lane. The result is exact everywhere."""

from llvmlite import ir
from numba import types

from .target import ARM, choose
from .vector import (
    I16,
    I32,
    V8,
    V16,
    V32,
    VF,
    call,
    constant,
    f32x16,
    i8x64,
    i16x32,
    i32x16,
    joined,
    operation,
    pieces,
    splat,
)

_TARGET, _ON_ARM = choose().name, choose().machine == ARM
_VNNI = _TARGET in ("avx512vnni", "avxvnni")


def _unsigned_by_signed(b, total, weights, activations):
    """Weights in 0..127 as bytes, activations int8 in -127..127."""
    if _TARGET == "avx512vnni":
        return call(b, "llvm.x86.avx512.vpdpbusd.512", total.type, total, weights, activations)
    if _TARGET == "avxvnni":
        return _by_halves(b, total, weights, activations, lambda t, w, x: call(
            b, "llvm.x86.avx512.vpdpbusd.256", t.type, t, _as_words(b, w), _as_words(b, x)))
    if _TARGET == "avx2":
        return _by_halves(b, total, weights, activations, lambda t, w, x: b.add(t, _avx2_dot(b, w, x)))
    return _signed_by_signed(b, total, weights, activations)


def _signed_by_signed(b, total, weights, activations):
    """Both int8 in -127..127; for targets whose dot product is signed, and the plain one."""
    if _TARGET == "neon-dotprod":
        quarters = zip(*(pieces(b, v, 4) for v in (total, weights, activations)), strict=True)
        return joined(b, [call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", t.type, t, w, x) for t, w, x in quarters])
    if _TARGET == "avx2":
        def signs(t, w, x):
            magnitude = call(b, "llvm.x86.avx2.psign.b", w.type, w, w)
            return b.add(t, _avx2_dot(b, magnitude, call(b, "llvm.x86.avx2.psign.b", w.type, x, w)))
        return _by_halves(b, total, weights, activations, signs)
    if _ON_ARM:
        quarters = zip(*(pieces(b, v, 4) for v in (total, weights, activations)), strict=True)
        return joined(b, [b.add(t, _neon_dot(b, w, x)) for t, w, x in quarters])
    wide = ir.VectorType(I16, 64)
    products = b.mul(b.sext(weights, wide), b.sext(activations, wide))
    for position in range(4):
        lanes = ir.Constant(ir.VectorType(I32, 16), list(range(position, 64, 4)))
        total = b.add(total, b.sext(b.shuffle_vector(products, products, lanes), V32))
    return total


def _neon_dot(b, weights, activations):
    """Without the dot product instruction. Sums of pairs fit 16 bits, as for AVX2."""
    products = ir.VectorType(I16, 8)
    low, high = (call(b, "llvm.aarch64.neon.smull.v8i16", products, w, x)
                 for w, x in zip(pieces(b, weights, 2), pieces(b, activations, 2), strict=True))
    pairs = call(b, "llvm.aarch64.neon.addp.v8i16", products, low, high)
    return call(b, "llvm.aarch64.neon.saddlp.v4i32.v8i16", ir.VectorType(I32, 4), pairs)


def _as_words(b, value):
    return b.bitcast(value, ir.VectorType(I32, value.type.count // 4))


def _by_halves(b, total, weights, activations, dot):
    halves = zip(*(pieces(b, v, 2) for v in (total, weights, activations)), strict=True)
    return joined(b, [dot(t, w, x) for t, w, x in halves])


_PAIRS = ir.VectorType(I16, 16)


def _avx2_pairs(b, weights, activations):
    """Sums of pairs fit 16 bits: 127 * 127 * 2 < 32768."""
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", _PAIRS, weights, activations)


def _avx2_widened(b, pairs):
    return call(b, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), pairs, constant(_PAIRS, 1))


def _avx2_dot(b, weights, activations):
    return _avx2_widened(b, _avx2_pairs(b, weights, activations))


@operation(i8x64)
def zero_i8(_b):
    """64 zeros."""
    return constant(V8, 0)


@operation(i32x16)
def zero_i32(_b):
    """16 zeros."""
    return constant(V32, 0)


# A machine without a dot product instruction adds products in 16 bits, as many as fit, and widens their sum once: eight
# with weights up to 15 (8 * 2 * 15 * 127 < 32768), two with weights up to 63. One that has it adds to the total itself.
# What comes between begin_products and end_products is exact in both.
_NARROW = _TARGET == "avx2"
products = i16x32 if _NARROW else i32x16
"""The type of products that have not been added to a total yet."""


@operation(products, i32x16)
def begin_products(b, total):
    """Begin to add products to `total`."""
    return constant(V16, 0) if _NARROW else total


@operation(products, products, i8x64, i8x64)
def add_products(b, some, weights, activations):
    """Some products + dot products of unsigned weights and int8 activations."""
    if not _NARROW:
        return _unsigned_by_signed(b, some, weights, activations)
    return _by_halves(b, some, weights, activations, lambda t, w, x: b.add(t, _avx2_pairs(b, w, x)))


@operation(products, products)
def settled(b, some):
    """The same products, and a point that memory accesses do not move across.

    The compiler would load and unpack all weights of a block first, and not find registers for them.
    """
    if not _NARROW:
        return some
    halves = pieces(b, some, 2)
    asm = ir.InlineAsm(ir.FunctionType(halves[0].type, [halves[0].type]), "", "=x,0,~{memory}", side_effect=True)
    return joined(b, [b.call(asm, [half]) for half in halves])


@operation(i32x16, i32x16, products)
def end_products(b, total, some):
    """`total` with the products added."""
    if not _NARROW:
        return some
    low, high = (_avx2_widened(b, half) for half in pieces(b, some, 2))
    return b.add(total, joined(b, [low, high]))


@operation(i32x16, types.int64)
def start_offset(b, activation_sum):
    """What `dot_offset` adds to first, given the sum of all activations that will be multiplied.

    A machine that multiplies unsigned by signed takes the weights with their offset of 128, and this takes it back.
    """
    if not _VNNI:
        return constant(V32, 0)
    return splat(b, V32, b.trunc(b.mul(activation_sum, ir.Constant(activation_sum.type, -128)), I32))


@operation(i32x16, i32x16, i8x64, i8x64)
def dot_offset(b, total, weights, activations):
    """total + dot products of (weights - 128) and activations; weights in 1..255 as bytes."""
    if _VNNI:
        return _unsigned_by_signed(b, total, weights, activations)
    return _signed_by_signed(b, total, b.xor(weights, constant(V8, -128)), activations)


@operation(i8x64, i8x64)
def low_nibbles(b, value):
    """The low 4 bits of each byte."""
    return b.and_(value, constant(V8, 15))


@operation(i8x64, i8x64)
def high_nibbles(b, value):
    """The high 4 bits of each byte."""
    words = b.lshr(b.bitcast(value, V32), constant(V32, 4))
    return b.and_(b.bitcast(words, V8), constant(V8, 15))


def _with_bits(position):
    """A word that puts 2 bits of each byte of `plane`, from bit `position`, above the 4 bits of `low`."""
    def emit(b, low, plane):
        words = b.bitcast(plane, V32)
        moved = (b.shl(words, constant(V32, 4 - position)) if position <= 4
                 else b.lshr(words, constant(V32, position - 4)))
        return b.or_(low, b.and_(b.bitcast(moved, V8), constant(V8, 0x30)))

    emit.__name__ = f"with_bits_{position}"
    return operation(i8x64, i8x64, i8x64)(emit)


with_bits_0, with_bits_2, with_bits_4, with_bits_6 = (_with_bits(position) for position in (0, 2, 4, 6))


@operation(i32x16, i32x16, i32x16)
def plus_128_times(b, x, y):
    """x + 128 * y"""
    return b.add(x, b.shl(y, constant(V32, 7)))


@operation(i32x16, i32x16, i32x16)
def minus_128_times(b, x, y):
    """x - 128 * y"""
    return b.sub(x, b.shl(y, constant(V32, 7)))


@operation(f32x16, i32x16)
def to_f32(b, value):
    """int32 to float32."""
    return b.sitofp(value, VF)
