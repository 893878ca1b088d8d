"""Builds programs: a model's wiring becomes operations on buffers of fixed size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgert.bundle import Header, Neurons
from edgert.bundle.header import down_headers, slabs
from edgert.kernels import records
from edgert.kernels.formats import BLOCK, FLOAT_BLOCK, FORMATS, QUANTIZED_BLOCK, TILE, Format
from edgert.kernels.team import Program
from edgert.models.config import Config
from edgert.residency.weights import Weights

from .buffers import Buffer, Buffers, segment_start


def _float_bits(value: float) -> int:
    return int(np.array(value, np.float32).view(np.int32))


@dataclass(frozen=True)
class Activation:
    """A vector for each token, in the forms in which matrices want it."""

    floats: Buffer
    quantized: Buffer

    def form(self, form: Format) -> Buffer:
        return self.quantized if form.integer else self.floats


class ProgramBuilder:
    """Implements models.network.Network: appends to `body`, and for the output head to `head`.

    one_token: for one new token at a time, with the feed-forward part as it then reads memory best; same results.
    """

    def __init__(self, config: Config, header: Header, weights: Weights, buffers: Buffers, cache_type: str, *,
                 one_token: bool) -> None:
        self._one_token = one_token
        self._config, self._header, self._weights, self._buffers = config, header, weights, buffers
        self._cache_code = {"f16": 0, "f32": 1}[cache_type]
        self.body, self.head = Program(), Program()

    def embedding(self, weight: str) -> Buffer:
        tensor, b = self._header.tensors[weight], self._buffers
        form = FORMATS[tensor.format]
        self.body.append(records.EMBEDDING + form.code, records.Embedding(
            b.rows_buffer.address, form.blocks(tensor.columns), b.x.address, b.x.stride))
        return b.x

    def norm(self, x: Buffer, weight: str, *, selected: bool = False) -> Activation:
        b, columns = self._buffers, self._config.hidden_size
        program = self.head if selected else self.body
        program.append(records.NORM, records.Norm(
            x.address, x.stride, self._weights.address(weight), columns, -(-columns // BLOCK),
            _float_bits(self._config.rms_norm_eps), b.h.address, b.h.stride,
            b.h_quantized.address, b.h_quantized.stride, int(selected)))
        return Activation(b.h, b.h_quantized)

    def linear(self, x: Activation, names: Sequence[str], *, bias: bool = False,
               add_to: Buffer | None = None) -> Buffer:
        out = self._buffers.qkv if add_to is None else add_to
        tensors = [self._header.tensors[name + ".weight"] for name in names]
        # A tile writes 16 rows: one that ends within them must be done before the next matrix begins there.
        joined = all(tensor.rows % TILE == 0 for tensor in tensors[:-1])
        column = 0
        for number, (name, tensor) in enumerate(zip(names, tensors, strict=True), 1):
            form = FORMATS[tensor.format]
            source = x.form(form)
            self.body.append(records.LINEAR, records.Linear(
                self._weights.address(name + ".weight"), -(-tensor.rows // TILE), form.code,
                form.blocks(tensor.columns), source.address, source.stride, out.address + 4 * column, out.stride,
                self._weights.address(name + ".bias") if bias else 0, int(add_to is not None),
                joined * (len(names) - number)))
            column += tensor.rows
        return out

    def attention(self, qkv: Buffer, layer: int) -> Activation:
        c, b = self._config, self._buffers
        shape = (qkv.address, qkv.stride, c.num_attention_heads, c.num_key_value_heads, c.head_dim, layer)
        self.body.append(records.ROPE + self._cache_code,
                         records.Rope(*shape, int(c.rope_pairing == "interleaved")))
        self.body.append(records.ATTENTION + self._cache_code, records.Attention(
            *shape, b.h.address, b.h.stride, b.scratch, b.scratch_stride, _float_bits(c.head_dim ** -0.5)))
        self.body.append(records.QUANTIZE, records.Quantize(
            b.h.address, b.h.stride, -(-c.query_size // BLOCK), b.h_quantized.address, b.h_quantized.stride))
        return Activation(b.h, b.h_quantized)

    def feed_forward(self, x: Activation, layer: int, *, add_to: Buffer) -> None:
        b, hidden_size, n = self._buffers, self._config.hidden_size, self._header.neurons[layer]
        gate_up, down = FORMATS[n.gate_up], FORMATS[n.down]
        table, counters = self._weights.table(n.section)
        source, tiles = x.form(gate_up), -(-hidden_size // TILE)
        offset, _ = Neurons.layout(hidden_size, gate_up, down)
        headers = self._weights.address(down_headers(layer)) if down.header_bytes else 0
        if self._one_token:
            record = records.OneToken(
                table, n.groups, gate_up.code, gate_up.blocks(hidden_size), source.address, down.code, offset, headers,
                tiles, add_to.address, b.partial.address, b.scratch, b.scratch_stride, counters)
            self.body.append(records.NEURONS, record)
            self.body.append(records.GATHER, record)
            return
        hidden_block = QUANTIZED_BLOCK if down.integer else FLOAT_BLOCK
        for first, last in b.phases:
            start, end = segment_start(n.groups, first), segment_start(n.groups, last)
            self.body.append(records.UP + gate_up.code, records.Up(
                table + 8 * start, end - start, gate_up.blocks(hidden_size), source.address, source.stride,
                b.hidden.address, b.hidden.stride, int(not down.integer), b.scratch, b.scratch_stride))
            self.body.append(records.DOWN + down.code, records.Down(
                table, n.groups, first, last, b.sums.address, offset, headers, tiles,
                b.hidden.address - start * hidden_block, b.hidden.stride, add_to.address, add_to.stride))
            if counters:
                self.body.append(records.RELEASE, records.Release(table + 8 * start, counters + 8 * start, end - start))

    def logits(self, x: Buffer, norm: str, head: str) -> None:
        h = self.norm(x, norm, selected=True)
        tensor = self._header.tensors[head + ".weight"]
        form, (table, counters) = FORMATS[tensor.format], self._weights.table(tensor.section)
        source, out = h.form(form), self._buffers.logits_buffer
        self.head.append(records.SLABS, records.Slabs(
            table, counters, slabs(tensor.rows), -(-tensor.rows // TILE), form.code, form.blocks(tensor.columns),
            source.address, source.stride, out.address, out.stride))
