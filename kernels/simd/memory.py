"""Loads and stores at integer addresses: scalars, vectors, prefetch. No alignment is assumed."""

from llvmlite import ir
from numba import types

from .convert import from_half, to_half
from .vector import (
    F32,
    I8,
    I16,
    I32,
    I64,
    V8,
    V32,
    VF,
    address,
    call,
    constant,
    f32x16,
    i8x64,
    i32x16,
    operation,
    splat,
)

_BYTES16 = ir.VectorType(I8, 16)
_SHORTS16 = ir.VectorType(I16, 16)
_WORDS16 = ir.VectorType(I32, 16)


def _load(b, at, kind):
    value = b.load(b.inttoptr(at, kind.as_pointer()))
    value.align = 1
    return value


def _to_floats(b, values):
    """16 bytes as float32."""
    return b.sitofp(b.zext(values, _WORDS16), VF)


def _store(b, at, value):
    b.store(value, b.inttoptr(at, value.type.as_pointer())).align = 1


@operation(types.int64, address)
def load_i64(b, at):
    """int64 at an address."""
    return _load(b, at, I64)


@operation(types.int64, address)
def load_i32(b, at):
    """int32 at an address, widened."""
    return b.sext(_load(b, at, I32), I64)


@operation(types.int64, address)
def load_u8(b, at):
    """uint8 at an address, widened."""
    return b.zext(_load(b, at, I8), I64)


@operation(types.float32, address)
def load_f32(b, at):
    """float32 at an address."""
    return _load(b, at, F32)


@operation(types.float32, address)
def load_f16(b, at):
    """float16 at an address, widened."""
    bits = b.insert_element(ir.Constant(_SHORTS16, 0), _load(b, at, I16), ir.Constant(I32, 0))
    return b.extract_element(from_half(b, bits), ir.Constant(I32, 0))


@operation(types.float32, address)
def load_bf16(b, at):
    """bfloat16 at an address, widened."""
    return b.bitcast(b.shl(b.zext(_load(b, at, I16), I32), ir.Constant(I32, 16)), F32)


@operation(types.void, address, types.int64)
def store_i64(b, at, value):
    """int64 to an address."""
    _store(b, at, value)


@operation(types.void, address, types.int64)
def store_i32(b, at, value):
    """The low 32 bits of an integer to an address."""
    _store(b, at, b.trunc(value, I32))


@operation(types.void, address, types.int64)
def store_i8(b, at, value):
    """The low byte of an integer to an address."""
    _store(b, at, b.trunc(value, I8))


@operation(types.void, address, types.float32)
def store_f32(b, at, value):
    """float32 to an address."""
    _store(b, at, value)


@operation(types.void, address, types.float32)
def store_f16(b, at, value):
    """float32 rounded to float16, to an address."""
    halves = to_half(b, b.insert_element(ir.Constant(VF, 0.0), value, ir.Constant(I32, 0)))
    _store(b, at, b.extract_element(halves, ir.Constant(I32, 0)))


@operation(i8x64, address)
def load_i8x64(b, at):
    """64 bytes."""
    return _load(b, at, V8)


@operation(i8x64, address)
def splat_4bytes(b, at):
    """4 bytes, repeated in each of 16 lanes: 4 activations for 16 weight rows."""
    return b.bitcast(splat(b, _WORDS16, _load(b, at, I32)), V8)


@operation(i8x64, address)
def load_16_repeated(b, at):
    """16 bytes, four times."""
    some = _load(b, at, _BYTES16)
    return b.shuffle_vector(some, some, ir.Constant(ir.VectorType(I32, 64), [*range(16)] * 4))


@operation(f32x16, address)
def load_f32x16(b, at):
    """16 float32."""
    return _load(b, at, VF)


@operation(f32x16, address)
def load_f16x16(b, at):
    """16 float16, widened."""
    return from_half(b, _load(b, at, _SHORTS16))


@operation(f32x16, address)
def load_bf16x16(b, at):
    """16 bfloat16, widened."""
    wide = b.zext(_load(b, at, _SHORTS16), _WORDS16)
    return b.bitcast(b.shl(wide, ir.Constant(_WORDS16, [16] * 16)), VF)


@operation(f32x16, address)
def load_u8x16(b, at):
    """16 uint8 as float32."""
    return _to_floats(b, _load(b, at, _BYTES16))


@operation(f32x16, address)
def load_i8x16(b, at):
    """16 int8 as float32."""
    return b.sitofp(b.sext(_load(b, at, _BYTES16), _WORDS16), VF)


@operation(f32x16, address)
def load_low_nibbles(b, at):
    """The low 4 bits of 16 bytes, as float32."""
    return _to_floats(b, b.and_(_load(b, at, _BYTES16), constant(_BYTES16, 15)))


@operation(f32x16, address)
def load_high_nibbles(b, at):
    """The high 4 bits of 16 bytes, as float32."""
    return _to_floats(b, b.lshr(_load(b, at, _BYTES16), constant(_BYTES16, 4)))


@operation(f32x16, address, address, types.int64, types.int64)
def load_three_bits(b, codes, bits, first, third):
    """From 16 bytes each the two bits from number `first` on, and below them in worth bit number `third`: numbers from
    0 to 7, as float32."""
    low, high = (b.and_(b.lshr(b.zext(_load(b, at, _BYTES16), _WORDS16), splat(b, V32, b.trunc(shift, I32))),
                        constant(_WORDS16, mask)) for at, shift, mask in ((codes, first, 3), (bits, third, 1)))
    return b.sitofp(b.or_(low, b.shl(high, constant(_WORDS16, 2))), VF)


@operation(f32x16, address)
def splat_f32(b, at):
    """The float32 at an address in all lanes."""
    return splat(b, VF, _load(b, at, F32))


@operation(types.void, address, i8x64)
def store_i8x64(b, at, value):
    """64 bytes to an address."""
    _store(b, at, value)


@operation(types.void, address, f32x16)
def store_f32x16(b, at, value):
    """16 float32."""
    _store(b, at, value)


@operation(types.void, address, f32x16)
def store_f16x16(b, at, value):
    """16 float32 rounded to float16."""
    _store(b, at, to_half(b, value))


@operation(types.void, address, i32x16)
def store_i8x16(b, at, value):
    """The low bytes of 16 int32."""
    _store(b, at, b.trunc(value, _BYTES16))


@operation(types.void, address)
def prefetch(b, at):
    """Ask for the cache line at an address."""
    pointer = b.inttoptr(at, I8.as_pointer())
    call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, *(ir.Constant(I32, n) for n in (0, 3, 1)))
