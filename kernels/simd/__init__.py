"""The SIMD vocabulary: 16 lanes of 32 bits, one text for every instruction set.

Kernels are written against these names alone. A vector always has 16 lanes of 32 bits or 64 of 8, whatever the
machine's registers hold: LLVM splits it. So a kernel's float operations, and their order, are the same everywhere.
Only what LLVM does not find by itself is lowered by hand for each target: the integer dot product (`dot`) and
half-precision conversion (`convert`). The approach is that of Google Highway.

Memory is addressed by plain 64-bit integers, as in C: whoever calls a kernel answers for its bounds.
"""
