"""Runs single operations: arrays in, arrays out, every output row between canaries."""

import functools
import os
from typing import NamedTuple

import numpy as np
from guarded import Buffer, floats
from hypothesis import settings

from edgert.kernels import native, records
from edgert.kernels.formats import BLOCK, FINE_BLOCK, QUANTIZED_BLOCK, SLAB, TILE, Activation, Format
from edgert.kernels.records import Code
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


def run(team: Team, *operations: tuple[Code, tuple[int, ...]]) -> bool:
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


QUANTIZED = np.dtype([("q", np.int8, 32), ("scale", "f4"), ("scaled_sum", "f4")])
FINE = np.dtype([("q", np.int8, 32), ("r", np.int8, 32), ("scale", "f4"), ("sum", "i4"), ("unused", "u1", 8)])
"""Blocks of activation.py."""
assert QUANTIZED.itemsize == QUANTIZED_BLOCK and FINE.itemsize == FINE_BLOCK


class Activations:
    """Token rows in the form that a weight format wants, and the float64 values that they stand for."""

    def __init__(self, buffer: Buffer, form: Activation) -> None:
        self.address, self.stride, self.buffer, self.form = buffer.address, buffer.stride, buffer, form
        self.blocks = buffer.bytes.shape[1] // form.block_bytes
        if form is Activation.FLOAT:
            self.values = buffer.view(np.float32).astype(np.float64)
            return
        self.raw = np.ascontiguousarray(buffer.bytes).view(QUANTIZED if form is Activation.QUANTIZED else FINE).copy()
        self.q = self.raw["q"].astype(np.int64)
        self.numbers = self.q if form is Activation.QUANTIZED else 128 * self.q + self.raw["r"].astype(np.int64)
        self.scale = self.raw["scale"][..., None]
        with np.errstate(invalid="ignore"):
            self.values = (self.numbers * self.scale.astype(np.float64)).reshape(len(self.raw), -1)


def quantize(team: Team, x: np.ndarray, form: Activation = Activation.QUANTIZED) -> tuple[Activations, bool]:
    """float32 rows as quantized blocks, and whether all was finite."""
    source = floats(padded(x, BLOCK))
    out = Buffer(len(x), blocks(x.shape[1]) * form.block_bytes)
    team.set(tokens=len(x))
    quantized, fine = (out.address if form is each else 0 for each in (Activation.QUANTIZED, Activation.FINE))
    finite = run(team, (Code.QUANTIZE, records.Quantize(
        source.address, source.stride, blocks(x.shape[1]), quantized, out.stride, fine, out.stride)))
    out.check()
    return Activations(out, form), finite


def activations(team: Team, form: Format, x: np.ndarray) -> Activations:
    """float32 rows as weights of this format meet them."""
    if form.activation is Activation.FLOAT:
        return Activations(floats(padded(x, BLOCK)), form.activation)
    return quantize(team, x, form.activation)[0]


def slab_addresses(packed: np.ndarray) -> np.ndarray:
    """The table of a matrix that stands in memory as a whole."""
    assert packed.flags.c_contiguous
    slabs = -(-len(packed) // SLAB)
    return packed.ctypes.data + SLAB * packed.shape[1] * np.arange(slabs, dtype=np.int64)


def address(array: np.ndarray | None) -> int:
    """Where an array stands; 0 for none."""
    return 0 if array is None else array.ctypes.data


class Product(NamedTuple):
    """One matrix times activations, with a bias or added to what is there. table: where its slabs are."""

    form: Format
    packed: np.ndarray
    x: Activations
    bias: np.ndarray | None = None
    add_to: np.ndarray | None = None
    table: np.ndarray | None = None
    counters: np.ndarray | None = None


def linear(team: Team, form: Format, packed: np.ndarray, x: Activations, *, bias: np.ndarray | None = None,
           add_to: np.ndarray | None = None, selected: int | None = None, table: np.ndarray | None = None,
           counters: np.ndarray | None = None) -> np.ndarray:
    """float32 of shape (tokens, rows of whole tiles). selected: only so many rows, as for the output head."""
    return joined(team, [Product(form, packed, x, bias, add_to, table, counters)], selected)[0]


def joined(team: Team, products: list[Product], selected: int | None = None) -> list[np.ndarray]:
    """Several matrices in one operation."""
    outs, operations, tables = [], [], []
    tokens = len(products[0].x.buffer.bytes)
    for following, (form, packed, x, bias, add_to, table, counters) in zip(
            reversed(range(len(products))), products, strict=True):
        outs.append(out := Buffer(tokens if selected is None else selected, 64 * len(packed)))
        if add_to is not None:
            out.view(np.float32)[:] = add_to
        tables.append(slab_addresses(packed) if table is None else table)
        operations.append((Code.LINEAR, records.Linear(
            tables[-1].ctypes.data, address(counters), len(packed), form.code, x.blocks, x.address, x.stride,
            out.address, out.stride, address(bias), int(add_to is not None), int(selected is not None), following)))
    # The count that is not asked for is wrong, and would write far outside.
    team.set(tokens=tokens if selected is None else 1000, selected=1000 if selected is None else selected)
    assert run(team, *operations)
    for out, product in zip(outs, products, strict=True):
        out.check()
        product.x.buffer.check()
    return [out.view(np.float32).copy() for out in outs]
