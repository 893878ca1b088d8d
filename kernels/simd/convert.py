"""Half precision to float32 and back: by instruction where the target has one, by integer arithmetic where not."""

from llvmlite import ir

from .target import ARM, choose
from .vector import F16, I16, I32, VF, constant

_HALVES = ir.VectorType(F16, 16)
_SHORTS = ir.VectorType(I16, 16)
_WORDS = ir.VectorType(I32, 16)
_HAS_HALF = choose().name != "plain" or choose().machine == ARM


def from_half(b, bits):
    """16 float16 bit patterns (<16 x i16>) to <16 x float>. In the plain form infinities and NaN come out finite."""
    if _HAS_HALF:
        return b.fpext(b.bitcast(bits, _HALVES), VF)
    wide = b.zext(bits, _WORDS)
    magnitude = b.shl(b.and_(wide, constant(_WORDS, 0x7FFF)), constant(_WORDS, 13))
    # float16's exponent bias is 15, float32's 127: the multiplication mends it and normalises subnormals.
    value = b.fmul(b.bitcast(magnitude, VF), constant(VF, 2.0 ** 112))
    sign = b.shl(b.and_(wide, constant(_WORDS, 0x8000)), constant(_WORDS, 16))
    return b.bitcast(b.or_(b.bitcast(value, _WORDS), sign), VF)


def to_half(b, value):
    """<16 x float> to 16 float16 bit patterns, rounded to nearest even; past float16's range comes infinity.

    The plain form is Fabian Giesen's float_to_half_fast3_rtne, without its NaN.
    """
    if _HAS_HALF:
        return b.bitcast(b.fptrunc(value, _HALVES), _SHORTS)
    bits = b.bitcast(value, _WORDS)
    sign = b.and_(bits, constant(_WORDS, -0x80000000))
    magnitude = b.xor(bits, sign)
    subnormal_magic = constant(VF, 0.5)
    small = b.sub(b.bitcast(b.fadd(b.bitcast(magnitude, VF), subnormal_magic), _WORDS), constant(_WORDS, 0x3F000000))
    odd = b.and_(b.lshr(magnitude, constant(_WORDS, 13)), constant(_WORDS, 1))
    normal = b.lshr(b.add(b.add(magnitude, constant(_WORDS, -0x38000000 + 0xFFF)), odd), constant(_WORDS, 13))
    halves = b.select(b.icmp_unsigned("<", magnitude, constant(_WORDS, 113 << 23)), small, normal)
    halves = b.select(b.icmp_unsigned(">=", magnitude, constant(_WORDS, 143 << 23)), constant(_WORDS, 0x7C00), halves)
    return b.trunc(b.or_(halves, b.lshr(sign, constant(_WORDS, 16))), _SHORTS)
