"""Functions of vectors that the vocabulary does not have: exp, tanh, and activations."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .decorators import inlined
from .simd.arithmetic import (
    absolute,
    add,
    div,
    fma,
    maximum,
    minimum,
    mul,
    power_of_two,
    round_i32,
    splat,
    sub,
    where_less,
)
from .simd.dot import to_f32

_LOWEST, _HIGHEST, _LOG2_E = (np.float32(x) for x in (-87.0, 88.0, math.log2(math.e)))
_LN2_HIGH, _LN2_LOW = np.float32(-0.693359375), np.float32(2.12194440e-4)
_P0, _P1, _P2, _P3, _P4, _P5 = (np.float32(x) for x in (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1))
_ZERO, _ONE, _TWO, _HALF = (np.float32(x) for x in (0.0, 1.0, 2.0, 0.5))
_TANH = tuple(np.float32(x) for x in (
    -5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1))
_SMALL = np.float32(0.625)
CLAMP, _SLOPE = np.float32(7), np.float32(-1.702)
_GELU_1, _GELU_3 = (np.float32(2 * math.sqrt(2 / math.pi) * x) for x in (1.0, 0.044715))
_ERF = tuple(np.float32(x) for x in (
    7.853861353153693e-5, -8.010193625184903e-4, 5.188327685732524e-3, -2.685381193529856e-2, 1.128358514861418e-1,
    -3.761262582423300e-1, 1.128379165726710))
_ERFC_NEAR = tuple(np.float32(x) for x in (
    2.326819970068386e-2, -1.387039388740657e-1, 3.687424674597105e-1, -5.824733027278666e-1, 6.210004621745983e-1,
    -4.944515323274145e-1, 3.404879937665872e-1, -2.741127028184656e-1, 5.638259427386472e-1))
_ERFC_FAR = tuple(np.float32(x) for x in (
    -1.047766399936249e1, 1.297719955372516e1, -7.495518717768503, 2.921019019210786, -1.015265279202700,
    4.218463358204948e-1, -2.820767439740514e-1, 5.641895067754075e-1))
_ROOT_HALF, _ROOT_2, _ROOT_8 = (np.float32(math.sqrt(x)) for x in (0.5, 2.0, 8.0))
_FURTHEST = np.float32(13.0)
"""Behind it e**(-x**2 / 2) is nothing in float32."""


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
def clamped(x):
    """x / (1 + e**(-1.702 x)) of what is at most 7 (OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card")."""
    x = minimum(splat(CLAMP), x)
    return div(x, add(splat(_ONE), exp(mul(splat(_SLOPE), x))))


@inlined
def clamped_up(x):
    """What such a gate is multiplied by: x between -7 and 7, plus 1."""
    return add(minimum(splat(CLAMP), maximum(splat(-CLAMP), x)), splat(_ONE))


@inlined
def relu(x):
    """x, or 0 where x is below 0; what is no number stays none."""
    return maximum(splat(_ZERO), x)


@inlined
def relu2(x):
    """relu(x)**2 (So et al. 2021, "Primer")."""
    x = relu(x)
    return mul(x, x)


def _polynomial(coefficients: Sequence[np.float32]) -> Any:
    """A function (x) of the polynomial with these coefficients, the highest first."""
    highest, *others = coefficients
    if not others:
        @inlined
        def constant(_x):
            return splat(highest)

        return constant
    *before, last = coefficients
    rest = _polynomial(before)

    @inlined
    def polynomial(x):
        return fma(rest(x), x, splat(last))

    return polynomial


_tanh, _erf, _erfc_near, _erfc_far = (_polynomial(of) for of in (_TANH, _ERF, _ERFC_NEAR, _ERFC_FAR))


@inlined
def tanh(x):
    """The hyperbolic tangent to about 1e-7: Cephes' tanhf (Moshier). Of what is not finite, no number."""
    size, square = absolute(x), mul(x, x)
    small = fma(mul(_tanh(square), square), x, x)
    large = sub(splat(_ONE), div(splat(_TWO), add(exp(add(size, size)), splat(_ONE))))
    large = where_less(x, splat(_ZERO), sub(splat(_ZERO), large), large)
    return fma(x, splat(_ZERO), where_less(size, splat(_SMALL), small, large))


@inlined
def gelu_tanh(x):
    """x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x**3) (Hendrycks and Gimpel 2016, "GELUs"), as
    x / (1 + e**-2u), in which nothing cancels out."""
    u = mul(x, fma(mul(x, x), splat(_GELU_3), splat(_GELU_1)))
    return div(x, add(splat(_ONE), exp(sub(splat(_ZERO), u))))


@inlined
def gelu(x):
    """x (1 + erf(x / sqrt(2))) / 2 to about 1e-6 of itself: erf near 0, further out erfc, of which little is left where
    x is below 0 (Cephes' ndtrf, Moshier)."""
    near = mul(x, splat(_ROOT_HALF))
    inner = fma(mul(near, splat(_HALF)), _erf(mul(near, near)), splat(_HALF))
    size = minimum(absolute(x), splat(_FURTHEST))
    square = mul(size, size)
    power = exp(mul(square, splat(-_HALF)))
    power = fma(power, mul(fma(size, size, sub(splat(_ZERO), square)), splat(-_HALF)), power)  # what `square` lost
    inverse = div(splat(_ONE), mul(maximum(size, splat(_ONE)), splat(_ROOT_HALF)))
    y = mul(inverse, inverse)
    part = where_less(size, splat(_ROOT_8), _erfc_near(y), _erfc_far(y))
    tail = mul(mul(mul(splat(_HALF), power), inverse), part)
    outer = where_less(x, splat(_ZERO), tail, sub(splat(_ONE), tail))
    return mul(x, where_less(size, splat(_ROOT_2), inner, outer))
