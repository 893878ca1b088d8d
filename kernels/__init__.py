"""Numba SIMD kernels; nothing here knows about models, files or budgets."""
