"""Runs single operations: arrays in, arrays out, every output row between canaries."""

import functools
import os
from typing import NamedTuple

import numpy as np
from guarded import Buffer, floats
from hypothesis import settings

from edgert.kernels import native, records
from edgert.kernels.formats import BLOCK, QUANTIZED_BLOCK, SLAB, TILE, Format
from edgert.kernels.team import Program, Team

EXAMPLES = int(os.environ.get("EDGERT_EXAMPLES", "25"))
"""Hypothesis examples of each property; emulated machines do fewer."""


def examples(count: int = EXAMPLES) -> settings:
    """The same examples every time, at most `count` and at most EXAMPLES of them."""
    return settings(derandomize=True, deadline=None, database=None, max_examples=min(count, EXAMPLES))


@functools.cache
def team(target: str, threads: int = 1) -> Team:
    return Team(native.library(target), threads)


def close_teams() -> None:
    """End the threads of every team, before the interpreter ends."""
    made = [team(t, n) for t in native._loaded for n in range(1, 9)] if team.cache_info().currsize else []
    for one in made:
        one.close()
    team.cache_clear()


def run(team: Team, *operations: tuple[int, tuple[int, ...]]) -> bool:
    program = Program()
    for code, record in operations:
        program.append(code, record)
    return team.run(program.array)


def bits(value: float) -> int:
    """A float32's bits, as records hold them."""
    return int(np.array(value, np.float32).view(np.int32))


def blocks(columns: int) -> int:
    return -(-columns // BLOCK)


def tiles(rows: int) -> int:
    return -(-rows // TILE)


def padded(values: np.ndarray, multiple: int) -> np.ndarray:
    """Zeros added to the last axis up to a multiple."""
    extra = -values.shape[-1] % multiple
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, extra)])


QUANTIZED = np.dtype([("q", np.int8, 32), ("r", np.int8, 32), ("scale", "f4"), ("scaled_sum", "f4"),
                      ("fine_scale", "f4"), ("fine_sum", "i4")])
"""A block of activation.py."""


class Activations:
    """Token rows in the form that a weight format wants, and the float64 values that they stand for; `fine`: to q8."""

    def __init__(self, buffer: Buffer, *, integer: bool, fine: bool = False) -> None:
        self.address, self.stride, self.buffer = buffer.address, buffer.stride, buffer
        if not integer:
            self.values = buffer.view(np.float32).astype(np.float64)
            return
        self.raw = np.ascontiguousarray(buffer.bytes).view(QUANTIZED).copy()
        self.q, self.r = (self.raw[name].astype(np.int64) for name in ("q", "r"))
        self.scale = self.raw["scale"][..., None]
        numbers = (128 * self.q + self.r) / 128 if fine else self.q
        with np.errstate(invalid="ignore"):
            self.values = (numbers * self.scale.astype(np.float64)).reshape(len(self.raw), -1)


def quantize(team: Team, x: np.ndarray, *, fine: bool = False) -> tuple[Activations, bool]:
    """float32 rows as quantized blocks, and whether all was finite."""
    source = floats(padded(x, BLOCK))
    out = Buffer(len(x), blocks(x.shape[1]) * QUANTIZED_BLOCK)
    team.set(tokens=len(x))
    finite = run(team, (records.QUANTIZE, records.Quantize(
        source.address, source.stride, blocks(x.shape[1]), out.address, out.stride)))
    out.check()
    return Activations(out, integer=True, fine=fine), finite


def activations(team: Team, form: Format, x: np.ndarray) -> Activations:
    if form.integer:
        return quantize(team, x, fine=form.fine)[0]
    return Activations(floats(padded(x, BLOCK)), integer=False)


class Product(NamedTuple):
    """One matrix times activations, with a bias or added to what is there."""

    form: Format
    packed: np.ndarray
    x: Activations
    bias: np.ndarray | None = None
    add_to: np.ndarray | None = None


def linear(team: Team, form: Format, packed: np.ndarray, x: Activations, *, bias: np.ndarray | None = None,
           add_to: np.ndarray | None = None) -> np.ndarray:
    """float32 of shape (tokens, rows of whole tiles)."""
    return joined(team, [Product(form, packed, x, bias, add_to)])[0]


def joined(team: Team, products: list[Product]) -> list[np.ndarray]:
    """Several matrices in one operation."""
    outs, operations = [], []
    for following, (form, packed, x, bias, add_to) in zip(reversed(range(len(products))), products, strict=True):
        assert packed.flags.c_contiguous
        outs.append(out := Buffer(len(x.buffer.bytes), 64 * len(packed)))
        if add_to is not None:
            out.view(np.float32)[:] = add_to
        block_bytes = QUANTIZED_BLOCK if form.integer else 128
        operations.append((records.LINEAR, records.Linear(
            packed.ctypes.data, len(packed), form.code, x.buffer.bytes.shape[1] // block_bytes, x.address, x.stride,
            out.address, out.stride, 0 if bias is None else bias.ctypes.data, int(add_to is not None), following)))
    team.set(tokens=len(products[0].x.buffer.bytes), selected=1000)
    assert run(team, *operations)
    for out, product in zip(outs, products, strict=True):
        out.check()
        product.x.buffer.check()
    return [out.view(np.float32).copy() for out in outs]


def slab_addresses(packed: np.ndarray) -> np.ndarray:
    """The table of a matrix that stands in memory as a whole."""
    slabs = -(-len(packed) // SLAB)
    return packed.ctypes.data + SLAB * packed.shape[1] * np.arange(slabs, dtype=np.int64)


def slabs(team: Team, form: Format, packed: np.ndarray, x: Activations, selected: int, table: np.ndarray,
          counters: np.ndarray | None = None) -> tuple[np.ndarray, bool]:
    """The output head: float32 of shape (selected, rows of whole tiles); and whether the run came to its end."""
    out = Buffer(selected, 64 * len(packed))
    team.set(tokens=1000, selected=selected)
    run(team, (records.SLABS, records.Slabs(
        table.ctypes.data, 0 if counters is None else counters.ctypes.data, len(table), len(packed), form.code,
        x.buffer.bytes.shape[1] // (QUANTIZED_BLOCK if form.integer else 128), x.address, x.stride, out.address,
        out.stride)))
    out.check()
    return out.view(np.float32).copy(), not team.stopped
