"""Sparse weights' words: activations picked by a mask, and dot products with signed weights of 4 bits.

A machine that multiplies unsigned by signed bytes takes the activations for the unsigned ones, with an offset of 128,
since what that adds depends on the weights alone: `add_offset` counts it once for all tokens and `end_signed` takes it
back. The results are exact everywhere.
"""

from llvmlite import ir
from numba import types

from .dot import (
    _NARROW,
    _VNNI,
    _avx2_pairs,
    _avx2_widened,
    _by_halves,
    _signed_by_signed,
    _unsigned_by_signed,
    products,
)
from .memory import splat_4bytes
from .target import ARM, choose, processor_features
from .vector import (
    I8,
    I32,
    I64,
    V8,
    V16,
    V32,
    Vector,
    address,
    call,
    constant,
    i8x64,
    i32x16,
    joined,
    operation,
    pieces,
)

_ON_ARM, _TARGET = choose().machine == ARM, choose().name
_BIASED = _VNNI or _NARROW
"""Whether activations get an offset."""
_COMPRESSES = _TARGET == "avx512vnni" and "avx512_vbmi2" in processor_features()
_SHUFFLES = _ON_ARM or _TARGET in ("avx512vnni", "avxvnni", "avx2")
_BYTES8, _BYTES16, _BYTES32 = (ir.VectorType(I8, n) for n in (8, 16, 32))
PICKED = 64
"""Bytes for the picked activations of a token."""


def _table(b):
    """For each byte of a mask 8 numbers: where its bits are, then 0x80."""
    name = "edgert_places_of_bits"
    found = b.module.globals.get(name)
    if found is None:
        rows = [[i for i in range(8) if mask >> i & 1] for mask in range(256)]
        kind = ir.ArrayType(I8, 2048)
        found = ir.GlobalVariable(b.module, kind, name)
        found.linkage, found.global_constant = "private", True
        found.initializer = ir.Constant(kind, bytearray(v for row in rows for v in row + [0x80] * (8 - len(row))))
    return b.ptrtoint(found, I64)


def _load(b, at, kind):
    value = b.load(b.inttoptr(at, kind.as_pointer()))
    value.align = 1
    return value


def _store(b, at, value):
    b.store(value, b.inttoptr(at, value.type.as_pointer())).align = 1


def _shuffled(b, values, places):
    """The 8 bytes at these places."""
    widen = ir.Constant(ir.VectorType(I32, 16), list(range(8)) + [8] * 8)
    wide = b.shuffle_vector(values, constant(_BYTES8, 0), widen)
    if _ON_ARM:
        return call(b, "llvm.aarch64.neon.tbl1.v8i8", _BYTES8, wide, places)
    places = b.shuffle_vector(places, constant(_BYTES8, 0), widen)
    found = call(b, "llvm.x86.ssse3.pshuf.b.128", _BYTES16, wide, places)
    return b.shuffle_vector(found, found, ir.Constant(ir.VectorType(I32, 8), list(range(8))))


@operation(types.int64)
def picked_room(b):
    """The address of PICKED bytes for each of 8 tokens, on the stack."""
    with b.goto_entry_block():
        room = b.alloca(ir.ArrayType(I8, 8 * PICKED))
    room.align = 64
    return b.ptrtoint(room, I64)


def _compressed(b, at, mask):
    """Of 32 int8 those whose bit of the mask is set, by an instruction."""
    bits = b.bitcast(b.trunc(mask, I32), ir.VectorType(ir.IntType(1), 32))
    return call(b, "llvm.x86.avx512.mask.compress.v32i8", _BYTES32, _biased(b, at), constant(_BYTES32, 0), bits)


def _biased(b, at):
    values = _load(b, at, _BYTES32)
    return b.xor(values, constant(_BYTES32, -128)) if _BIASED else values


@operation(types.void, address, address, types.int64)
def pick(b, out, at, mask):
    """Of 32 int8 those whose bit of the mask is set, one after another; what follows them is anything."""
    if _COMPRESSES:
        _store(b, out, _compressed(b, at, mask))
        return
    values = _biased(b, at)
    if not _SHUFFLES:
        for i in range(32):
            _store(b, out, b.extract_element(values, ir.Constant(I32, i)))
            out = b.add(out, b.and_(b.lshr(mask, ir.Constant(I64, i)), ir.Constant(I64, 1)))
        return
    table = _table(b)
    for i in range(4):
        some = b.shuffle_vector(values, values, ir.Constant(ir.VectorType(I32, 8), list(range(8 * i, 8 * i + 8))))
        byte = b.and_(b.lshr(mask, ir.Constant(I64, 8 * i)), ir.Constant(I64, 255))
        places = _load(b, b.add(table, b.shl(byte, ir.Constant(I64, 3))), _BYTES8)
        _store(b, out, _shuffled(b, some, places))
        out = b.add(out, call(b, "llvm.ctpop.i64", I64, byte))


picked = Vector("i8x32", _BYTES32) if _COMPRESSES else address
"""The type of what one token has picked: it stays in a register where that is cheaper than to come back from memory."""


@operation(picked, address, address, types.int64)
def pick_one(b, out, at, mask):
    """The same of one token, with `out` for room."""
    if _COMPRESSES:
        return _compressed(b, at, mask)
    pick.emit(b, out, at, mask)
    return out


def quad_of(number):
    """A word: quad `number` of what is picked, in each of 16 lanes."""
    def emit(b, some):
        if not _COMPRESSES:
            return splat_4bytes.emit(b, b.add(some, ir.Constant(I64, 4 * number)))
        words = b.bitcast(some, ir.VectorType(I32, 8))
        return b.bitcast(b.shuffle_vector(words, words, constant(ir.VectorType(I32, 16), number)), V8)

    emit.__name__ = f"quad_{number}"
    return operation(i8x64, picked)(emit)


@operation(types.int64, types.int64)
def count_bits(b, value):
    """How many bits are set."""
    return call(b, "llvm.ctpop.i64", I64, value)


_TWICE = ir.Constant(ir.VectorType(I32, 64), [*range(32), *range(32)])


@operation(i8x64, address)
def load_signed_nibbles(b, at):
    """From 32 bytes their low 4 bits and then their high ones, as numbers from -8 to 7; or 16 times that (UNIT)."""
    both = _load(b, at, _BYTES32)
    twice = b.shuffle_vector(both, both, _TWICE)
    words = b.shl(b.bitcast(twice, V32), ir.Constant(V32, [4] * 8 + [0] * 8))
    top = b.and_(b.bitcast(words, V8), constant(V8, -16))
    return top if _VNNI else b.ashr(top, constant(V8, 4))


@operation(products)
def no_products(_b):
    """None yet."""
    return constant(V16 if _NARROW else V32, 0)


def _times(b, some, weights, activations):
    if _NARROW:
        return _by_halves(b, some, activations, weights, lambda t, x, w: b.add(t, _avx2_pairs(b, x, w)))
    if _VNNI:
        return _unsigned_by_signed(b, some, activations, weights)
    return _signed_by_signed(b, some, weights, activations)


@operation(products, products, i8x64, i8x64)
def add_signed(b, some, weights, activations):
    """Some products + those of weights as `load_signed_nibbles` gives them and activations as `pick` does; of 8 vectors
    at most, which fit 16 bits: 8 * 2 * 255 * 8 < 32768."""
    return _times(b, some, weights, activations)


@operation(products, products, i8x64)
def add_offset(b, offset, weights):
    """Some offset + that which these weights' products have."""
    return _times(b, offset, weights, constant(V8, -128)) if _BIASED else offset


@operation(i32x16, products, products)
def end_signed(b, some, offset):
    """The products without their offset."""
    if not _BIASED:
        return some
    exact = b.sub(some, offset)
    if _NARROW:
        return joined(b, [_avx2_widened(b, half) for half in pieces(b, exact, 2)])
    return b.ashr(exact, constant(V32, 4))
