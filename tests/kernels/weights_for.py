"""Random weights and activations of every kind that could go wrong, and what they stand for in float64."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from edgert.kernels.formats import BLOCK, FORMATS, TILE, Activation, Format, Quantized, pack, round_bf16

FORMAT_NAMES = list(FORMATS)
PAIRS = [("q4", "q4"), ("q4", "q6"), ("q6", "q4"), ("q6", "q8"), ("q8", "q8"), ("q8", "f16"), ("f16", "q4"),
         ("f16", "f32"), ("f32", "f32"), ("q3", "q2"), ("q2", "ternary"), ("ternary", "q4n"), ("q4n", "q3")]
"""Formats of gate and up, and of down: each in both places, split ones with such as are not."""
KINDS = ("ordinary", "large", "denormal", "zero", "mixed", "sparse")
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(KINDS)


def values(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of a kind: around 1, around 1e4, around 1e-38, zeros, magnitudes from 1e-9 to 1e4, or mostly zeros."""
    x = rng.standard_normal(shape)
    if kind == "large":
        x *= 1e4 / 3
    elif kind == "denormal":
        x *= 1e-38
    elif kind == "zero":
        x *= 0
    elif kind == "mixed":
        x *= 10.0 ** rng.uniform(-9, 4, shape)
    elif kind == "sparse":
        x *= rng.random(shape) < 0.05
    return x.astype(np.float32)


class Weights(NamedTuple):
    """A matrix: packed, and as float64 with zeros in the padding. positive, negative: D*s*q and M*m of it; of ternary
    D*s*(q + 1) and D*s, which is how it meets activations.

    numbers: what it was packed from, where that are integers.
    """

    form: Format
    packed: np.ndarray
    exact: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    numbers: Quantized | None = None

    @property
    def base(self) -> "Weights":
        """What its base planes stand for; as `packed` still the whole."""
        if self.numbers is None or not self.form.detail_bytes:
            return self
        q = self.numbers.q.astype(np.float64)
        lower = {"q3": 2, "q4": 4, "q4n": 4, "q6": 16, "q8": 16}[self.form.name]
        coarse = q // lower * lower + self.form.middle
        if self.form.name == "q4n":
            coarse *= there(self.numbers.q)
        positive, negative = meaning(self.form, replace(self.numbers, q=coarse))
        return self._replace(exact=positive - negative, positive=positive, negative=negative, numbers=None)


def there(q: np.ndarray) -> np.ndarray:
    """Which weights of q4n have a place: those that are not 0, and so many zeros that they are two of every four."""
    quads = q.reshape(-1, 4)
    places = np.zeros(quads.shape, bool)
    np.put_along_axis(places, np.argsort(quads == 0, 1, kind="stable")[:, :2], True, 1)
    return places.reshape(q.shape)


def quantized(rng: np.random.Generator, form: Format, kind: str, rows: int, columns: int) -> Quantized:
    """Integers and scales of whole tiles and blocks, zero past `rows` and `columns`."""
    tall, wide = -(-rows // TILE) * TILE, -(-columns // BLOCK) * BLOCK
    groups = wide // BLOCK
    inside = np.zeros((tall, wide), dtype=bool)
    inside[:rows, :columns] = True
    if form.name == "q8":
        q = np.where(inside, rng.integers(-127, 128, (tall, wide)), 0).astype(np.int8)
        return Quantized(q, round_bf16(np.abs(values(rng, kind, (tall, groups)))))
    if form.name == "ternary":
        q = np.where(inside, rng.integers(-1, 2, (tall, wide)), 0).astype(np.int8)
        s = np.abs(values(rng, kind, (tall, groups))).astype(np.float16).astype(np.float32)
        return Quantized(q, s, scale=np.abs(values(rng, kind, (tall,))) / 256)
    if form.name == "q4n":
        q = np.where(inside, rng.integers(-8, 8, (tall, wide)), 0).astype(np.int8)
        kept = rng.permuted(np.tile([True, True, False, False], (tall * wide // 4, 1)), axis=1).reshape(tall, wide)
        s = rng.integers(0, 256, (tall, groups)).astype(np.uint8)
        return Quantized(q * kept, s, scale=round_bf16(np.abs(values(rng, kind, (tall,))) / 256))
    top = {"q2": 4, "q3": 8, "q4": 16, "q6": 64}[form.name]
    q = rng.integers(0, top, (tall, wide)).astype(np.uint8)
    if rng.random() < 0.2:
        q[:] = top - 1
    s, m = (rng.integers(0, 256, (tall, groups)).astype(np.uint8) for _ in range(2))
    scale, minimum = (round_bf16(np.abs(values(rng, kind, (tall,))) / 256) for _ in range(2))
    return Quantized(np.where(inside, q, 0).astype(np.uint8), s, m, scale, minimum)


def meaning(form: Format, weights: Quantized) -> tuple[np.ndarray, np.ndarray]:
    """D*s*q and M*m of each weight, in float64: the definitions in formats.py."""
    q = weights.q.astype(np.float64)
    s = np.repeat(weights.s.astype(np.float64), BLOCK, axis=1)
    if form.name == "ternary" and weights.scale is not None:
        return weights.scale[:, None] * (s * (q + 1)), weights.scale[:, None] * s
    if form.name == "q4n" and weights.scale is not None:
        return weights.scale[:, None] * (s * q), np.zeros_like(q)
    if weights.m is None or weights.scale is None or weights.minimum is None:
        return s * q, np.zeros_like(q)
    m = np.repeat(weights.m.astype(np.float64), BLOCK, axis=1)
    return weights.scale[:, None] * s * q, weights.minimum[:, None] * m


def matrix(rng: np.random.Generator, form: Format, kind: str, rows: int, columns: int) -> Weights:
    """A random matrix of `rows` x `columns`."""
    if form.activation is not Activation.FLOAT:
        numbers = quantized(rng, form, kind, rows, columns)
        positive, negative = meaning(form, numbers)
        return Weights(form, pack(form, numbers), positive - negative, positive, negative, numbers)
    wide = np.zeros((-(-rows // TILE) * TILE, -(-columns // BLOCK) * BLOCK), dtype=np.float32)
    wide[:rows, :columns] = values(rng, kind, (rows, columns))
    held = wide.astype(np.float16 if form.name == "f16" else np.float32).astype(np.float64)
    return Weights(form, pack(form, wide), held, held, np.zeros_like(held))


def product(weights: Weights, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x W^T in float64, and how far float32 may be from it by the error bound of a sum (Higham 2002, chapter 3).

    Denormal products lose up to 2**-149 each, times a block's integers (at most 2**20) and a row's scale (2**8).
    """
    in_floats = weights.form.activation is Activation.FLOAT
    terms = (x.shape[1] if in_floats else x.shape[1] // BLOCK) + 8
    size = np.abs(x) @ np.abs(weights.positive).T + np.abs(x) @ np.abs(weights.negative).T
    lost = 2.0**-149 if in_floats else 2.0**-121
    return x @ weights.exact.T, terms * (2.0**-24 * size + lost)
