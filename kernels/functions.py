"""Functions of vectors that the vocabulary does not have: exp, and activations."""

import math

import numpy as np

from .decorators import inlined
from .simd.arithmetic import add, div, fma, maximum, minimum, mul, power_of_two, round_i32, splat, sub
from .simd.dot import to_f32

_LOWEST, _HIGHEST, _LOG2_E = (np.float32(x) for x in (-87.0, 88.0, math.log2(math.e)))
_LN2_HIGH, _LN2_LOW = np.float32(-0.693359375), np.float32(2.12194440e-4)
_P0, _P1, _P2, _P3, _P4, _P5 = (np.float32(x) for x in (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1))
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@inlined
def exp(x):
    """e**x to about 1e-7, x clamped to -87..88: Cephes' expf (Moshier), its polynomial in fused multiply-adds."""
    x = minimum(maximum(x, splat(_LOWEST)), splat(_HIGHEST))
    n = round_i32(mul(x, splat(_LOG2_E)))
    whole = to_f32(n)
    r = fma(whole, splat(_LN2_LOW), fma(whole, splat(_LN2_HIGH), x))
    p = fma(splat(_P0), r, splat(_P1))
    p = fma(p, r, splat(_P2))
    p = fma(p, r, splat(_P3))
    p = fma(p, r, splat(_P4))
    p = fma(p, r, splat(_P5))
    p = add(fma(p, mul(r, r), r), splat(_ONE))
    return mul(p, power_of_two(n))


@inlined
def silu(x):
    """x / (1 + e**-x)"""
    return div(x, add(splat(_ONE), exp(sub(splat(_ZERO), x))))


@inlined
def relu(x):
    """x, or 0 where x is below 0; what is no number stays none."""
    return maximum(splat(_ZERO), x)


@inlined
def relu2(x):
    """relu(x)**2 (So et al. 2021, "Primer")."""
    x = relu(x)
    return mul(x, x)
