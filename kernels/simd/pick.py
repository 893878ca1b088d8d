"""Weights of which few are there (q4n, formats.py) meeting the activations that belong to them.

Two in four weights are there: so instead of spreading them out, which costs a shuffle for each vector of weights and
leaves as many products as without zeros, each vector picks its activations: the table of a byte shuffle is 16
activations, its indices come from the positions that the weights have.
"""

import functools

from llvmlite import ir

from .dot import add_products, begin_products, products, zero_i32
from .memory import load_16_repeated
from .target import ARM, choose
from .vector import I32, V8, V16, V32, address, call, constant, i8x64, joined, operation, pieces

_TARGET, _ON_ARM = choose().name, choose().machine == ARM
_BIASED = _TARGET in ("avx512vnni", "avxvnni", "avx2")
"""Whether products are of unsigned and signed bytes. The weights are the signed ones: they take few values, which lets
pairs of products fit 16 bits. The activations have 128 added, and `begin_picked` takes that back."""
_SMALL = _TARGET == "avx2"
"""Whether sums of products have only 16 bits: then weights are as small as they can be, elsewhere as they come."""

UNIT = 0.5 if _SMALL else 1 / 16
"""What the numbers below are multiplied by to be q, of a whole block and of a base alone, which may be added before
they are; a power of two, so that it does not matter when."""


def _bytes_shuffled(b, table, indices):
    """Of each 16 bytes of the table those that the indices, 0..15, say."""
    if _TARGET == "avx512vnni":
        return call(b, "llvm.x86.avx512.pshuf.b.512", V8, table, indices)
    count, name = (4, "llvm.aarch64.neon.tbl1.v16i8") if _ON_ARM else (2, "llvm.x86.avx2.pshuf.b")
    parts = zip(*(pieces(b, v, count) for v in (table, indices)), strict=True)
    return joined(b, [call(b, name, t.type, t, i) for t, i in parts])


def _moved(b, value, left):
    words = b.bitcast(value, V32)
    return b.bitcast(b.shl(words, constant(V32, left)) if left >= 0 else b.lshr(words, constant(V32, -left)), V8)


def _code(shift, bits, below):
    """A word: some bits of each byte, from bit `shift` on, where the largest of them stands for less than 0; and
    constant bits below."""
    def emit(b, value):
        if _SMALL:
            if bits == 4:
                return b.sub(b.and_(_moved(b, value, 1 - shift), constant(V8, 30)), constant(V8, 16))
            number = b.and_(_moved(b, value, -shift) if shift else value, constant(V8, (1 << bits) - 1))
            return _bytes_shuffled(b, constant(V8, [-13, -5, 3, 11] * 16), number)
        left = 8 - bits - shift
        upper = b.and_(_moved(b, value, left) if left else value, constant(V8, 0x100 - (1 << 8 - bits)))
        return b.xor(upper, constant(V8, 0x80 | below))

    emit.__name__ = f"code_{shift}_{bits}"
    return operation(i8x64, i8x64)(emit)


code_low, code_high = (_code(shift, 4, 0) for shift in (0, 4))
"""The nibbles of each byte: q / UNIT."""
upper_codes = tuple(_code(shift, 2, 0x18) for shift in (2, 6, 0, 4))
"""From a vector of the base plane: its four vectors, q / UNIT with the middle in place of the lower bits."""


_QUADS = [[4 * (2 * odd + number // 2) for number in range(4)] * 16 for odd in range(2)]


def _picking(vector):
    """A word: from a vector of positions what `picked` needs for one of the four that it serves."""
    def emit(b, positions):
        moved = _moved(b, positions, -2 * vector) if vector else positions
        return b.or_(b.and_(moved, constant(V8, 3)), constant(V8, _QUADS[vector % 2]))

    emit.__name__ = f"picking_{vector}"
    return operation(i8x64, i8x64)(emit)


picking = tuple(_picking(vector) for vector in range(4))


def _picked(odd):
    """A word: the activations of an even vector, or of an odd one, of a table of 16 and what `picking` gave."""
    def emit(b, table, indices):
        if _TARGET != "plain" or _ON_ARM:
            return _bytes_shuffled(b, table, indices)
        # Without such an instruction: each of the four in a quad, and two bits that choose.
        lanes = ir.VectorType(I32, 64)
        four = [b.shuffle_vector(table, table, ir.Constant(lanes, [quad + place for quad in _QUADS[odd]]))
                for place in range(4)]
        bits = [b.icmp_unsigned("!=", b.and_(indices, constant(V8, bit)), constant(V8, 0)) for bit in (1, 2)]
        low, high = b.select(bits[0], four[1], four[0]), b.select(bits[0], four[3], four[2])
        return b.select(bits[1], high, low)

    emit.__name__ = f"picked_{odd}"
    return operation(i8x64, i8x64, i8x64)(emit)


picked = tuple(_picked(odd) for odd in range(2))


@operation(i8x64, address)
def activations_16(b, at):
    """A table of 16 int8 activations."""
    table = load_16_repeated.emit(b, at)
    return b.xor(table, constant(V8, -128)) if _BIASED else table


@operation(products, i8x64, i8x64, i8x64, i8x64)
def begin_picked(b, *weights):
    """Begin to add the products of these weights; it serves every token."""
    some = begin_products.emit(b, zero_i32.emit(b))
    if not _BIASED:
        return some
    if _SMALL:  # then four fit a byte
        weights = (functools.reduce(b.add, weights),)
    for vector in weights:
        some = add_products.emit(b, some, constant(V8, -128), vector)
    return b.sub(constant(V16 if _SMALL else V32, 0), some)


@operation(products, products, i8x64, i8x64)
def add_picked(b, some, weights, activations):
    """Some products + those of weights and picked activations."""
    return add_products.emit(b, some, activations, weights)
