"""Builds programs: a model's wiring becomes operations on buffers of fixed size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import numpy as np

from edgert.bundle import Header
from edgert.bundle.header import down_headers, predictor
from edgert.kernels import records
from edgert.kernels.expert_records import GLU, Glu
from edgert.kernels.formats import BLOCK, FORMATS, TILE, Activation, Format
from edgert.kernels.groups import row_tiles_of
from edgert.kernels.pages import CACHE_TYPES
from edgert.kernels.records import HIDDEN_ACTS, Code
from edgert.kernels.team import Program
from edgert.models.config import Config
from edgert.models.expert_config import Config as ExpertConfig
from edgert.models.tensors import TensorSpec, feed_forward_parts
from edgert.residency.source import Asking

from .buffers import Buffer, Buffers, segment_start
from .expert_program import ExpertProgram, LayerWeights, Routing


def _float_bits(value: float) -> int:
    return int(np.array(value, np.float32).view(np.int32))


class Kind(Enum):
    """What a program is for. The results of the first two are the same, to the bit."""

    MANY = auto()
    """Any number of new tokens."""
    ONE = auto()
    """One new token, with the feed-forward part as it then reads memory best."""
    DRAFT = auto()
    """One new token, with what stays in memory alone."""
    OBSERVING = auto()
    """As MANY, and how much attention the tokens pay to each position is added up."""


class Places(Protocol):
    """Where weights are: residency.weights.Weights, and what takes its place. Names, and what is returned, are its."""

    def address(self, name: str) -> int: ...
    def matrix(self, name: str) -> tuple[int, int]: ...
    def table(self, name: str) -> tuple[int, int]: ...
    def details(self, name: str | None) -> tuple[int, int]: ...
    def asking(self, name: str) -> Asking: ...
    def head_tiles(self, rows: int) -> int: ...


@dataclass(frozen=True)
class Vectors:
    """A vector for each token, which an operation writes in the forms that later ones want.

    forms: where it may stand in each form. outputs: where the operation's record has that form's address, which is 0
    until the first matrix wants it.
    """

    program: Program
    operation: int
    forms: dict[Activation, Buffer]
    outputs: dict[Activation, int]

    def in_form_of(self, weights: Format) -> Buffer:
        """The vectors as these weights meet them."""
        form = weights.activation
        if form in self.outputs:
            self.program.amend(self.operation, self.outputs[form], self.forms[form].address)
        return self.forms[form]


@dataclass(frozen=True)
class Normed(Vectors):
    """What a norm has made. code, record: its operation, without the addresses of forms."""

    code: Code
    record: records.Norm


class ProgramBuilder:
    """Implements models.network.Network: appends to `body`, and for the output head to `head`. centers: key_centers.
    routing: what experts are left out; None for none."""

    def __init__(self, config: Config, header: Header, weights: Places, buffers: Buffers, cache_type: str,
                 kind: Kind, centers: np.ndarray | None = None, routing: Routing | None = None) -> None:
        self._kind, self._centers, self._routing = kind, centers, routing or Routing()
        self._config, self._header, self._weights, self._buffers = config, header, weights, buffers
        self._cache_type = list(CACHE_TYPES).index(cache_type)
        self._feed_forward = feed_forward_parts(config.tensors(), sparse=config.sparse)
        self.body, self.head = Program(), Program()
        self._experts: ExpertProgram | None = None
        self._norm_ahead: int | None = None
        """The operation of a norm that is computed a layer ahead, with the weights of the layer before as yet."""

    def embedding(self, weight: str, *, scale: float = 1.0) -> Buffer:
        tensor, b = self._header.tensors[weight], self._buffers
        form = FORMATS[tensor.format]
        self.body.append(Code.EMBEDDING, records.Embedding(
            form.code, b.rows_buffer.address, form.blocks(tensor.columns), b.x.address, b.x.stride,
            _float_bits(scale)))
        return b.x

    def add_positions(self, x: Buffer, weight: str, *, first: int) -> None:
        tensor, b = self._header.tensors[weight], self._buffers
        form = FORMATS[tensor.format]
        self.body.append(Code.LEARNED_POSITIONS, records.LearnedPositions(
            form.code, self._weights.address(weight), first, form.blocks(tensor.columns), x.address, x.stride,
            b.scratch, b.scratch_stride))

    def norm(self, x: Buffer | Vectors, weight: str, *, bias: str | None = None, centered: bool = False,
             selected: bool = False) -> Normed:
        forms, columns = self._buffers.h, self._header.tensors[weight].rows
        if isinstance(x, Vectors):  # in its place: a row's squares are added up before any of it is written
            forms = x.forms
            x = x.in_form_of(FORMATS["f32"])
        program = self.head if selected else self.body
        record = records.Norm(
            x.address, x.stride, self._weights.address(weight), columns, -(-columns // BLOCK),
            _float_bits(self._config.norm_epsilon), 0, forms[Activation.FLOAT].stride,
            0, forms[Activation.QUANTIZED].stride, 0, forms[Activation.FINE].stride, int(selected),
            0 if bias is None else self._weights.address(bias))
        code = Code.LAYER_NORM if centered or bias is not None else Code.NORM
        return self._normed(program, forms, code, record)

    def _normed(self, program: Program, forms: dict[Activation, Buffer], code: Code, record: records.Norm) -> Normed:
        outputs = {Activation.FLOAT: records.NORM.floats, Activation.QUANTIZED: records.NORM.quantized,
                   Activation.FINE: records.NORM.fine}
        return Normed(program, program.append(code, record), forms, outputs, code, record)

    def plain(self, x: Buffer) -> Vectors:
        return self._in_all_forms(x, self._config.hidden_size)

    def _in_all_forms(self, x: Buffer, columns: int) -> Vectors:
        """Vectors that are there as floats already."""
        b = self._buffers
        operation = self.body.append(Code.QUANTIZE, records.Quantize(
            x.address, x.stride, -(-columns // BLOCK),
            0, b.h[Activation.QUANTIZED].stride, 0, b.h[Activation.FINE].stride))
        return Vectors(self.body, operation, {**b.h, Activation.FLOAT: x}, {
            Activation.QUANTIZED: records.QUANTIZE.quantized, Activation.FINE: records.QUANTIZE.fine})

    def linear(self, x: Vectors, names: Sequence[str], *, bias: bool = False, add_to: Buffer | None = None) -> Buffer:
        return self._linear(x, names, self._buffers.products if add_to is None else add_to, bias=bias,
                            accumulate=add_to is not None)

    def head_norms(self, qkv: Buffer, query_weight: str, key_weight: str, *, whole: bool = False) -> None:
        c = self._config
        self.body.append(Code.HEAD_NORMS, records.HeadNorms(
            qkv.address, qkv.stride, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
            self._weights.address(query_weight), self._weights.address(key_weight), int(whole),
            _float_bits(c.norm_epsilon)))

    def head_layer_norms(self, qkv: Buffer, query_weight: str, key_weight: str) -> None:
        c, size = self._config, 4 * self._config.head_dim
        weights = [self._weights.address(name) + head * size
                   for name, heads in ((query_weight, c.num_attention_heads), (key_weight, c.num_key_value_heads))
                   for head in range(heads)]
        for head, weight in enumerate(weights):
            at = qkv.address + head * size
            self.body.append(Code.LAYER_NORM, records.Norm(
                at, qkv.stride, weight, c.head_dim, c.head_dim // BLOCK, _float_bits(c.norm_epsilon), at, qkv.stride,
                0, 0, 0, 0, 0))

    def add(self, y: Buffer, *, to: Buffer, norm: str | None = None, scale: float = 1.0) -> None:
        self.body.append(Code.ADD, records.Add(
            to.address, to.stride, y.address, y.stride, self._config.hidden_size,
            0 if norm is None else self._weights.address(norm), _float_bits(self._config.norm_epsilon),
            _float_bits(scale)))

    def _linear(self, x: Vectors, names: Sequence[str], out: Buffer, *, bias: bool, accumulate: bool) -> Buffer:
        tensors = [self._header.tensors[name + ".weight"] for name in names]
        # A tile writes 16 rows: one that ends within them must be done before the next matrix begins there.
        joined = all(tensor.rows % TILE == 0 for tensor in tensors[:-1])
        column = 0
        for number, (name, tensor) in enumerate(zip(names, tensors, strict=True), 1):
            form = FORMATS[tensor.format]
            source, (table, counters) = x.in_form_of(form), self._weights.matrix(name + ".weight")
            self.body.append(Code.LINEAR, records.Linear(
                table, counters, -(-tensor.rows // TILE), form.code, form.blocks(tensor.columns), source.address,
                source.stride, out.address + 4 * column, out.stride,
                self._weights.address(name + ".bias") if bias else 0, int(accumulate), 0,
                joined * (len(names) - number)))
            column += tensor.rows
        return out

    def attention(self, qkv: Buffer, layer: int, *, sinks: str | None = None) -> Vectors:
        c, b = self._config, self._buffers
        out = b.h[Activation.FLOAT]
        shape = (self._cache_type, qkv.address, qkv.stride, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                 layer)
        sight = c.window(layer) or 0, _float_bits(c.attention_softcap or 0)
        self._rotate(qkv, layer)
        record = records.Attention(*shape, out.address, out.stride, b.scratch, b.scratch_stride,
                                   _float_bits(c.attention_scale), b.parts.address, b.parts.stride, *sight,
                                   0 if sinks is None else self._weights.address(sinks))
        self.body.append(Code.ATTENTION, record)
        self.body.append(Code.COMBINE, record)
        if self._kind is Kind.OBSERVING:
            masses = b.masses[layer]
            self.body.append(Code.MASSES, records.Masses(
                *shape, _float_bits(c.attention_scale), b.scratch, b.scratch_stride, masses.ctypes.data,
                masses.strides[0], *sight))
        return self._in_all_forms(out, c.query_size)

    def _rotate(self, qkv: Buffer, layer: int) -> None:
        """Rotate queries and keys, and put keys and values into the cache: both at once, or, where queries are scaled,
        queries by their own tables, which stand behind the others, and then what there is of keys."""
        c, table = self._config, self._config.rope_table(layer)
        centers = 0 if self._centers is None else self._centers[layer].ctypes.data
        whole = qkv.address, c.num_attention_heads, c.num_key_value_heads, table or 0
        tables = len(c.rope_tables())
        parts = [whole] if c.angle_tables == tables else [
            (qkv.address, c.num_attention_heads, 0, tables + (table or 0)),
            (qkv.address + 4 * c.query_size, 0, c.num_key_value_heads, table or 0)]
        for address, heads, kv_heads, number in parts:
            self.body.append(Code.ROPE, records.Rope(
                self._cache_type, address, qkv.stride, heads, kv_heads, c.head_dim, layer, int(c.rotates_neighbours),
                centers, 0 if table is None else c.rotary_dim, 4 * c.rotary_dim * number))

    def feed_forward(self, x: Vectors, layer: int, *, add_to: Buffer | None = None) -> Buffer:
        out, fresh = self._buffers.products if add_to is None else add_to, int(add_to is None)
        if self._config.sparse:
            self._sparse_feed_forward(x, layer, out, fresh)
        else:
            self._dense_feed_forward(x, layer, out, fresh)
        return out

    def _dense_feed_forward(self, x: Vectors, layer: int, out: Buffer, fresh: int) -> None:
        """fresh: 1 where `out` is written over, 0 where it is added to."""
        b, hidden_size, n = self._buffers, self._config.hidden_size, self._header.neurons[layer]
        gate_up, down = FORMATS[n.gate_up], FORMATS[n.down]
        table, counters = self._weights.table(n.section)
        details, detail_counters = self._weights.details(n.details)
        source, tiles = x.in_form_of(gate_up), -(-hidden_size // TILE)
        headers = self._weights.address(down_headers(layer)) if down.header_bytes else 0
        row_tiles, act = row_tiles_of(gated=self._config.gated), HIDDEN_ACTS.index(self._config.hidden_act)
        part = self._feed_forward[layer]
        up_bias, down_bias = self._vector(part.up_bias), self._vector(part.down_bias)
        if self._kind not in (Kind.MANY, Kind.OBSERVING):
            record = records.Neurons(
                table, counters, n.groups, gate_up.code, gate_up.blocks(hidden_size), source.address, down.code,
                headers, tiles, out.address, b.partial.address, b.scratch, b.scratch_stride, details,
                detail_counters, act, row_tiles, up_bias, down_bias, fresh)
            self.body.append(Code.NEURONS, record)
            self.body.append(Code.GATHER, record)
            return
        for first, last in b.phases:
            start, end = segment_start(n.groups, first), segment_start(n.groups, last)
            self.body.append(Code.UP, records.Up(
                gate_up.code, table + 8 * start, end - start, gate_up.blocks(hidden_size), source.address,
                source.stride, b.hidden.address, b.hidden.stride, down.code, b.scratch, b.scratch_stride,
                details + 8 * start if details else 0, act, row_tiles,
                up_bias + 4 * BLOCK * start if up_bias else 0))
            self.body.append(Code.DOWN, records.Down(
                down.code, table, n.groups, first, last, b.sums.address, gate_up.code, gate_up.blocks(hidden_size),
                headers, tiles, b.hidden.address - start * down.activation.block_bytes, b.hidden.stride,
                out.address, out.stride, b.scratch, b.scratch_stride, details, row_tiles, down_bias, fresh))
            for entries, of in ((table, counters), (details, detail_counters)):
                if of:
                    self.body.append(Code.RELEASE, records.Release(entries + 8 * start, of + 8 * start, end - start))

    def _sparse_feed_forward(self, x: Vectors, layer: int, out: Buffer, fresh: int) -> None:
        """The products of the matrix that decides, or a predictor's scores; which units of neurons they make needed;
        those units. fresh: as above."""
        b, c, n, part = self._buffers, self._config, self._header.neurons[layer], self._feed_forward[layer]
        assert part.deciding is not None
        if predicts := self._header.predicts:
            self._scores(x, layer, b.deciding)
        else:
            self._linear(x, [part.deciding.name.removesuffix(".weight")], b.deciding, bias=part.up_bias is not None,
                         accumulate=False)
        units, table = n.units(c), self._weights.table(n.section)[0]
        asking, chosen = self._weights.asking(n.section), b.chosen_buffer.address
        choose = records.Choose(b.deciding.address, b.deciding.stride, n.groups, units.neurons, c.intermediate_size,
                                chosen, table, int(self._kind is Kind.DRAFT), asking.used, asking.time, layer,
                                asking.asked, asking.semaphore)
        self.body.append(Code.CHOOSE, choose)
        if asking.semaphore:
            self.body.append(Code.ASK, choose)
            if predicts and self._kind is Kind.ONE:
                self._look_ahead(x, layer + 1)
        source = x.in_form_of(FORMATS["f32"]) if c.gated or predicts else Buffer(0, 0)
        record = records.Sparse(
            table, n.groups, units.neurons, c.intermediate_size, units.neuron_bytes, units.deciding_bytes,
            self._vector(part.up_bias) if predicts else 0, units.up_bytes, FORMATS[n.gate_up].code,
            FORMATS[n.down].code, -(-c.hidden_size // BLOCK), b.deciding.address, b.deciding.stride, chosen,
            source.address, source.stride, HIDDEN_ACTS.index(c.hidden_act), b.scratch, b.scratch_stride,
            -(-c.hidden_size // TILE), b.partial.address, out.address, out.stride, self._vector(part.down_bias), fresh)
        many = self._kind in (Kind.MANY, Kind.OBSERVING)
        for code in (Code.SPARSE_UP, Code.SPARSE_DOWN) if many else (Code.SPARSE_ONE, Code.SPARSE_GATHER):
            self.body.append(code, record)

    def _scores(self, x: Vectors, layer: int, out: Buffer) -> None:
        """What a layer's predictor makes of x."""
        first, second = predictor(layer)
        features = self._linear(x, [first], self._buffers.features, bias=False, accumulate=False)
        rank = self._header.tensors[f"{first}.weight"].rows
        self._linear(self._in_all_forms(features, rank), [second], out, bias=True, accumulate=False)

    def _look_ahead(self, x: Vectors, layer: int) -> None:
        """Have the next layer's predictor asked about what this layer is given, so that what it will need is read while
        this one computes: from layer to layer that changes little (Deja Vu, Liu et al. 2023). x: what this layer is
        given. The next one's norm takes the place of this one's when it is built."""
        if self._norm_ahead is not None and isinstance(x, Normed):
            for argument, value in ((records.NORM.weight, x.record.weight), (records.NORM.bias, x.record.bias)):
                self.body.amend(self._norm_ahead, argument, value)
        self._norm_ahead = None
        if layer == len(self._header.neurons) or not isinstance(x, Normed):
            return
        b, n, c = self._buffers, self._header.neurons[layer], self._config
        asking, table = self._weights.asking(n.section), self._weights.table(n.section)[0]
        given = self._normed(self.body, {**b.h, Activation.FLOAT: b.ahead}, x.code, x.record._replace(
            floats_stride=b.ahead.stride))
        self._norm_ahead = given.operation
        self._scores(given, layer, b.foreseen)
        choose = records.Choose(b.foreseen.address, b.foreseen.stride, n.groups, n.units(c).neurons,
                                c.intermediate_size, b.chosen_ahead.address, table, 0, asking.guessed, asking.time,
                                layer, asking.asked_ahead, asking.semaphore)
        self.body.append(Code.CHOOSE, choose)
        self.body.append(Code.ASK, choose)

    def glu(self, gate_up: Buffer, columns: int, *, weighed: bool = False) -> Vectors:
        forms = self._buffers.glu
        operation = self.body.append(Code.GLU, Glu(
            gate_up.address, gate_up.stride, columns, HIDDEN_ACTS.index(self._config.hidden_act), int(weighed),
            0, forms[Activation.FLOAT].stride, 0, forms[Activation.QUANTIZED].stride, 0, forms[Activation.FINE].stride))
        return Vectors(self.body, operation, forms, {Activation.FLOAT: GLU.floats, Activation.QUANTIZED: GLU.quantized,
                                                     Activation.FINE: GLU.fine})

    def experts(self, x: Vectors, layer: int, *, add_to: Buffer, scale: float = 1.0,
                meanwhile: Callable[[], None] = lambda: None) -> None:
        assert isinstance(self._config, ExpertConfig)
        if self._experts is None:
            self._experts = ExpertProgram(self._config, self._header, self._buffers, self.body, norm=self._plain_norm,
                                          matrix=self._router, places=self._places, routing=self._routing)
        layer -= self._config.dense_layers
        gate_up = FORMATS[self._header.neurons[layer].gate_up]
        self._experts.append(layer, x.in_form_of(FORMATS["f32"]), x.in_form_of(gate_up), add_to, scale, meanwhile)

    def _plain_norm(self, x: Buffer, weight: str, out: Buffer) -> None:
        operation = self.norm(x, weight).operation
        self.body.amend(operation, records.NORM.floats, out.address)
        self.body.amend(operation, records.NORM.floats_stride, out.stride)

    def _router(self, x: Buffer, name: str, out: Buffer, bias: str | None) -> None:
        tensor = self._header.tensors[name]
        form = FORMATS[tensor.format]
        assert form.activation is Activation.FLOAT
        self.body.append(Code.LINEAR, records.Linear(
            self._weights.matrix(name)[0], 0, -(-tensor.rows // TILE), form.code, form.blocks(tensor.columns),
            x.address, x.stride, out.address, out.stride, 0 if bias is None else self._weights.address(bias), 0, 0, 0))

    def _places(self, layer: int) -> LayerWeights:
        section = self._header.neurons[layer].section
        c, biases = self._config, {}
        if isinstance(c, ExpertConfig) and c.biases:
            prefix = f"model.layers.{layer + c.dense_layers}.mlp.experts."
            biases = {part: self._weights.address(f"{prefix}{part}_proj.bias") for part in ("gate", "up", "down")}
        return LayerWeights(self._weights.table(section)[0], self._weights.asking(section), biases)

    def _vector(self, spec: TensorSpec | None) -> int:
        """Its address, or 0."""
        return 0 if spec is None else self._weights.address(spec.name)

    def logits(self, x: Buffer, norm: str, head: str, *, norm_bias: str | None = None, centered: bool = False,
               head_bias: str | None = None) -> None:
        c, h = self._config, self.norm(x, norm, bias=norm_bias, centered=centered, selected=True)
        tensor = self._header.tensors[head + ".weight"]
        form, (table, counters) = FORMATS[tensor.format], self._weights.matrix(head + ".weight")
        source, out = h.in_form_of(form), self._buffers.logits_buffer
        tiles = self._weights.head_tiles(tensor.rows)
        self.head.append(Code.LINEAR, records.Linear(
            table, counters, tiles, form.code, form.blocks(tensor.columns), source.address, source.stride, out.address,
            out.stride, 0 if head_bias is None else self._weights.address(head_bias), 0, 1, 0))
        if c.logit_scale != 1 or c.logit_softcap is not None:
            self.head.append(Code.SCALE, records.Scale(
                out.address, out.stride, tiles, _float_bits(c.logit_scale), _float_bits(c.logit_softcap or 0)))
