"""The weights in an ONNX graph: which node uses which constant, and of which module of the model that is.

What a weight is stands in its node's metadata (torch's newer exporter), in its node's name, such as
`/model/layers.0/self_attn/q_proj/MatMul`, or in its own (`model.layers.0.self_attn.q_proj.weight`), in this order: its
own is often `onnx::MatMul_1019`, and of a matrix that is embedding and output head it can name but one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgert.errors import SourceError, UnsupportedError
from edgert.kernels.formats import BLOCK

from .onnx_file import BITS, Stored, stored
from .onnx_tensors import TYPE_NAMES, Blocks, Floats, LatestBand, Transposed
from .source import SourceTensor
from .source_file import SourceFile

NORMS = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "LayerNormalization",
         "SkipLayerNormalization", "RMSNormalization")
_MICROSOFT = {*NORMS, "MatMulNBits", "GatherBlockQuantized", "GroupQueryAttention", "MultiHeadAttention",
              "RotaryEmbedding", "Gelu", "FastGelu", "QuickGelu"}
"""Operators of com.microsoft in models whose weights are what the original's are."""
_ROUNDS_ACTIVATIONS = {"MatMulInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
                       "QuantizeLinear", "QLinearMatMul", "QGemm", "QAttention", "ConvInteger", "QLinearConv"}
_ALIKE = {"Identity", "Cast"}
"""Operators that give a constant unchanged, but for its type."""
_LAYER = re.compile(r"(?:^|\.)((?:layers|h|blocks)\.\d+\..+)$")
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Use:
    """A constant that a node uses as weights. names: what it may be, `tail` of a tensor's name, the likeliest first.
    certain: whether it is a weight of the model, whatever its name is."""

    names: tuple[str, ...]
    tensor: SourceTensor
    of: Stored
    certain: bool
    graph: int


def tail(name: str) -> str:
    """The part of a tensor's name that exporters keep: from the layer on, or of a tensor outside the layers the module.

    `layers.0.attn.q_proj.weight`, `norm.weight`; whether attention is called `attn` or `self_attn` does not count.
    """
    module, _, kind = name.rpartition(".")
    return f"{_module(module)}.{kind}"


def _module(path: str) -> str:
    """The same of a module's path, which may be a node's name and end with an operator's."""
    parts = []
    for part in re.split(r"[/.]", path.strip("/")):
        if part[:1].isupper() or part.startswith(("weight", "bias", "scales", "qweight")) or "::" in part:
            break
        parts.append({"self_attn": "attn"}.get(part, part))
    whole = ".".join(parts).removesuffix(".layernorm")
    layer = _LAYER.search(whole)
    if layer is None:
        return whole.rpartition(".")[2]
    return "norm" if layer[1].endswith(".final_norm_layernorm") else layer[1]


class Graph:
    """The nodes and constants of a model, those of graphs inside nodes too.

    model: the onnx package's ModelProto, as read_model gives it. files: those with weights, by name; the ones that are
    found here are added. Raises UnsupportedError where there are operators that make another model of it.
    """

    def __init__(self, model: Any, path: Path, files: dict[str, SourceFile]) -> None:
        self.path, self._files, self._latest = path, files, LatestBand()
        self.nodes: list[Any] = []
        self.inputs = {value.name for value in model.graph.input}
        self.outputs = {value.name for value in model.graph.output}
        self.producers: dict[str, Any] = {}
        self._graph_of: list[int] = []
        self._constants: dict[str, Any] = {}
        self._stored: dict[str, Stored] = {}
        self._add(model.graph, [0])
        self._check_operators()

    def _add(self, graph: Any, count: list[int]) -> None:
        number = count[0]
        count[0] += 1
        self._check_texts(graph)
        self._constants |= {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            self.nodes.append(node)
            self._graph_of.append(number)
            self.producers |= dict.fromkeys(node.output, node)
            if node.op_type == "Constant" and (value := attribute(node, "value")) is not None:
                self._constants[node.output[0]] = value
            for of in node.attribute:
                if of.HasField("g"):
                    self._add(of.g, count)

    def _check_texts(self, graph: Any) -> None:
        """Texts that are not UTF-8 come as bytes."""
        texts = [tensor.name for tensor in graph.initializer]
        for node in graph.node:
            texts += [node.name, node.op_type, node.domain, *node.input, *node.output]
            texts += [of.name for of in node.attribute]
            texts += [text for entry in node.metadata_props for text in (entry.key, entry.value)]
        if not all(isinstance(text, str) for text in texts):
            raise SourceError(f"{self.path}: has names that are not UTF-8: the file is damaged")

    def _check_operators(self) -> None:
        for node in self.nodes:
            if node.op_type in _ROUNDS_ACTIVATIONS:
                raise UnsupportedError(
                    f"{self.path}: is quantized to 8 bits with {node.op_type}, which rounds what is computed and not "
                    "only the weights, and edgert does not read it: take the model in floats, or quantized with "
                    "MatMulNBits")
            if node.domain not in ("", "ai.onnx") and not (node.domain == "com.microsoft"
                                                           and node.op_type in _MICROSOFT):
                raise UnsupportedError(f"{self.path}: has the operator {node.op_type} of {node.domain}, which edgert "
                                       "does not know: take another export of the model")

    def stored(self, name: str) -> Stored | None:
        """A constant by its name, where it is one of weights' types. Raises SourceError where it is damaged."""
        if name not in self._stored:
            tensor = self._constants.get(name)
            if tensor is None or tensor.data_type not in _weight_types():
                return None
            self._stored[name] = stored(tensor, self.path, self._files)
        return self._stored[name]

    def uses(self) -> Iterator[Use]:
        """All weights, in the order of the nodes. Raises SourceError, and UnsupportedError for a layout that edgert
        does not read."""
        for node, graph in zip(self.nodes, self._graph_of, strict=True):
            for kind, tensor, of, certain in self._of(node):
                names = [self._scoped(node, kind), self._named(node.name, kind), self._named(of.name, kind)]
                if kind == "bias":
                    names.insert(0, self._bias_of(node))
                certain = certain or of.name.endswith((".weight", ".bias")) or (kind == "bias" and bool(names[0]))
                yield Use(tuple(dict.fromkeys(filter(None, names))) or (of.name,), tensor, of, certain, graph)

    def _of(self, node: Any) -> Iterator[tuple[str, SourceTensor, Stored, bool]]:
        """The weights of a node: weight or bias, the tensor, what it is made of, whether that is certain."""
        kind, inputs = node.op_type, node.input
        if kind == "MatMulNBits":
            yield "weight", *self._n_bits(node), True
            yield from self._vector(node, 5, "bias")
        elif kind == "GatherBlockQuantized":
            yield "weight", *self._gathered_blocks(node), True
        elif kind in ("MatMul", "Gemm") and (found := self._matrix(inputs[1])) is not None:
            of, transposed = found
            yield "weight", *self._floats(of, transposed == bool(attribute(node, "transB", 0))), True
            if kind == "Gemm":
                if attribute(node, "alpha", 1.0) != 1 or attribute(node, "transA", 0):
                    raise UnsupportedError(f"{self.path}: node {node.name} is a Gemm that scales or transposes, "
                                           "which edgert does not read")
                yield from self._vector(node, 2, "bias")
        elif kind == "Gather" and (found := self._matrix(inputs[0])) is not None:
            yield "weight", *self._floats(found[0], found[1]), False
        elif kind in NORMS:
            first = 2 if kind.startswith("Skip") else 1
            yield from self._vector(node, first, "weight")
            yield from self._vector(node, first + 1, "bias")
        elif kind in ("Add", "Mul"):
            for place in (0, 1):
                yield from self._vector(node, place, "bias" if kind == "Add" else "weight")

    def _matrix(self, name: str) -> tuple[Stored, bool] | None:
        """The constant matrix of floats behind a value, and whether it is transposed on the way; None if none is."""
        transposed = False
        while (node := self.producers.get(name)) is not None and node.op_type != "Constant":
            if node.op_type == "DequantizeLinear" and self.stored(node.input[0]) is not None:
                raise UnsupportedError(f"{self.path}: weight {node.input[0]} is quantized for DequantizeLinear, which "
                                       "edgert does not read: take the model in floats, or quantized with MatMulNBits")
            if node.op_type == "Transpose" and attribute(node, "perm", []) == [1, 0]:
                transposed = not transposed
            elif node.op_type not in _ALIKE:
                return None
            name = node.input[0]
        of = self.stored(name)
        return (of, transposed) if of is not None and len(of.shape) == 2 and of.type in TYPE_NAMES else None

    def _floats(self, of: Stored, transposed: bool) -> tuple[SourceTensor, Stored]:
        return (Transposed(of, self.path, self._latest) if transposed else Floats(of, self.path)), of

    def _vector(self, node: Any, place: int, kind: str) -> Iterator[tuple[str, SourceTensor, Stored, bool]]:
        name = node.input[place] if place < len(node.input) else ""
        while (producer := self.producers.get(name)) is not None and producer.op_type in _ALIKE:
            name = producer.input[0]
        of = self.stored(name) if name else None
        if of is not None and len(of.shape) == 1 and of.shape[0] > 1 and of.type in TYPE_NAMES:
            yield kind, Floats(of, self.path), of, False

    def _n_bits(self, node: Any) -> tuple[SourceTensor, Stored]:
        bits, size = attribute(node, "bits", 4), attribute(node, "block_size", 0)
        shape = attribute(node, "N", 0), attribute(node, "K", 0)
        self._require_blocks(node, bits, size)
        if len(node.input) > 4 and node.input[4]:
            raise UnsupportedError(f"{self.path}: node {node.name} has its columns in another order (g_idx), which "
                                   "edgert does not read")
        if attribute(node, "weight_prepacked", 0):
            raise UnsupportedError(f"{self.path}: node {node.name} has its weights packed for one kind of GPU, which "
                                   "edgert does not read: export the model for the CPU")
        codes, scales, zero_points = (self._part(node, place) for place in (1, 2, 3))
        made = Blocks(*self._given(node, codes, scales), zero_points, shape, bits, size, 1 << bits - 1, self.path)
        self._require_sizes(made, node)
        return made, made.codes

    def _gathered_blocks(self, node: Any) -> tuple[SourceTensor, Stored]:
        scales, zero_points = self._part(node, 2), self._part(node, 3)
        name = node.input[0]
        while (producer := self.producers.get(name)) is not None and producer.op_type in ("Reshape", *_ALIKE):
            name = producer.input[0]
        codes, scales = self._given(node, self.stored(name), scales)
        bits = BITS[codes.type] if codes.type != "UINT8" else attribute(node, "bits", 4)
        size = attribute(node, "block_size", 128)
        self._require_blocks(node, bits, size)
        if attribute(node, "gather_axis", 0) != 0 or attribute(node, "quantize_axis", 1) not in (1, -1) or codes.type \
                not in ("UINT8", "UINT4", "INT4"):
            raise UnsupportedError(f"{self.path}: node {node.name} has its blocks along columns, or of type "
                                   f"{codes.type}, which edgert does not read")
        rows = codes.shape[0]
        row_bytes = codes.size // max(rows, 1)
        made = Blocks(codes, scales, zero_points, (rows, row_bytes * 8 // bits), bits, size,
                      0 if codes.type == "UINT4" else 1 << bits - 1, self.path, signed=codes.type == "INT4",
                      padded=False)
        self._require_sizes(made, node)
        return made, codes

    def _require_blocks(self, node: Any, bits: Any, size: Any) -> None:
        if bits not in (4, 8) or not isinstance(size, int) or size < BLOCK or size % BLOCK:
            raise UnsupportedError(f"{self.path}: node {node.name} has blocks of {size} weights of {bits} bits, which "
                                   f"edgert does not read; it reads 4 and 8 bits in blocks of {BLOCK} and multiples")

    def _part(self, node: Any, place: int) -> Stored | None:
        return self.stored(node.input[place]) if place < len(node.input) and node.input[place] else None

    def _given(self, node: Any, codes: Stored | None, scales: Stored | None) -> tuple[Stored, Stored]:
        if codes is None or scales is None or scales.type not in TYPE_NAMES or codes.type in TYPE_NAMES:
            raise SourceError(f"{self.path}: node {node.name} has no weights in blocks with scales: the file is "
                              "damaged, or made by an exporter with a fault")
        return codes, scales

    def _require_sizes(self, made: Blocks, node: Any) -> None:
        rows, columns = made.shape
        blocks = -(-columns // made.block_size)
        row = -(-(blocks * made.block_size if made.padded else columns) * made.bits // 8)
        zeros = made.zero_points
        zero_size = 0 if zeros is None else rows * (
            blocks * BITS[zeros.type] // 8 if zeros.type in TYPE_NAMES else -(-blocks * made.bits // 8))
        if rows < 1 or columns < 1 or made.codes.size != rows * row \
                or made.scales.size * 8 != rows * blocks * BITS[made.scales.type] \
                or (zeros is not None and zeros.size != zero_size):
            raise SourceError(f"{self.path}: node {node.name} has weights, scales or zero points of the wrong size for "
                              f"{rows} rows of {columns} in blocks of {made.block_size}: the file is damaged")

    @staticmethod
    def _named(name: str, kind: str) -> str:
        module = _module(name)
        return f"{module}.{kind}" if module else ""

    def _scoped(self, node: Any, kind: str) -> str:
        """By the names of the modules around a node, which torch's newer exporter writes down."""
        scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
        modules = re.findall(r"'([^']*)'", scopes)
        return self._named(modules[-2], kind) if len(modules) > 1 else ""

    def _bias_of(self, node: Any) -> str:
        """By the matrix whose products a bias is added to."""
        for name in node.input:
            before = self.producers.get(name)
            if before is not None and before.op_type in ("MatMul", "MatMulNBits"):
                return self._scoped(before, "bias") or self._named(before.name, "bias")
        return ""


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """A node's attribute by name, if it is there and of the default's type; otherwise the default."""
    import onnx

    found = next((onnx.helper.get_attribute_value(of) for of in node.attribute if of.name == name), None)
    return found if found is not None and (default is None or isinstance(found, type(default))) else default


def _weight_types() -> set[int]:
    import onnx

    return {getattr(onnx.TensorProto, name) for name in BITS}
