"""What is between the matrices of a gated linear unit (Shazeer 2020, "GLU Variants Improve Transformer") that stand for
themselves, as those of experts that all tokens share do (Dai et al. 2024, "DeepSeekMoE")."""

import numpy as np

from .activation import quantize_pair
from .combine import power
from .decorators import kernel
from .expert_records import GLU
from .feed_forward import gated
from .formats import BLOCK, FINE_BLOCK, QUANTIZED_BLOCK
from .records import STATE
from .simd.arithmetic import keep_first, mul, splat
from .simd.memory import load_f32, load_f32x16, load_i64, store_f32x16
from .state import take

_ZERO, _ONE = np.float32(0), np.float32(1)


@kernel
def glu(op, state):
    """act(gate) * up of each token, in the forms that the next matrix wants; what is behind a row is 0."""
    x, x_stride, columns = load_i64(op + GLU.x), load_i64(op + GLU.x_stride), load_i64(op + GLU.columns)
    activation, weighed = load_i64(op + GLU.activation), load_i64(op + GLU.weighed)
    floats, quantized, fine = load_i64(op + GLU.floats), load_i64(op + GLU.quantized), load_i64(op + GLU.fine)
    blocks = (columns + BLOCK - 1) // BLOCK
    tokens = load_i64(state + STATE.tokens)
    token = take(state, 1)
    while token < tokens:
        gate = x + token * x_stride
        up, scale = gate + 4 * columns, splat(_ONE)
        if weighed:
            scale = splat(_ONE / (_ONE + power(_ZERO - load_f32(up + 4 * columns))))
        for block in range(blocks):
            at, left = 128 * block, columns - BLOCK * block
            low = keep_first(mul(gated(activation, load_f32x16(gate + at), load_f32x16(up + at)), scale), left, _ZERO)
            high = keep_first(mul(gated(activation, load_f32x16(gate + at + 64), load_f32x16(up + at + 64)), scale),
                              left - 16, _ZERO)
            if floats:
                store_f32x16(floats + token * load_i64(op + GLU.floats_stride) + at, low)
                store_f32x16(floats + token * load_i64(op + GLU.floats_stride) + at + 64, high)
            if quantized or fine:
                of_quantized, of_fine = load_i64(op + GLU.quantized_stride), load_i64(op + GLU.fine_stride)
                quantize_pair(low, high, quantized + token * of_quantized + block * QUANTIZED_BLOCK if quantized else 0,
                              fine + token * of_fine + block * FINE_BLOCK if fine else 0, state + STATE.error)
        token = take(state, 1)
