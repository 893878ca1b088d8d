"""The bundle's header: what is where, as docs/bundle-format.md specifies it."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any, NamedTuple

from edgert.kernels.expert_units import ExpertUnits
from edgert.kernels.formats import BLOCK, FORMATS, SLAB, TILE
from edgert.kernels.neuron_rows import NeuronUnits, neuron_units
from edgert.models.config import Config
from edgert.models.tensors import ALWAYS_RESIDENT, FEED_FORWARD, Role

MAGIC = b"EDGERT\r\n"
"""Carriage return and newline show a file mangled by a text-mode copy."""
VERSION = 3
PREFIX_BYTES = 32
"""Magic, uint32 version, 4 zero bytes, uint64 header length, uint64 xxh3_64 of the header; little-endian."""
MAX_HEADER_BYTES = 4 << 20
ALIGNMENT = 4096
TENSOR_ALIGNMENT = 64

TOKENIZER, CHAT_TEMPLATE, RESIDENT, PREDICTORS, HEAD, EMBEDDING, GROUP_CHECKSUMS = (
    "tokenizer", "chat_template", "resident", "predictors", "head", "embedding", "group_checksums")


ACTIVITY_PARTS = 16
"""For so many sizes of a window it is known what of a sparse layer is missing in it."""
MOST_NATS = 100.0
"""That leaving out experts may cost."""
PRUNED_KINDS = ("attention", "feed-forward")
"""The kinds of matrices whose weights may be pruned."""


class ExpertLoss(NamedTuple):
    """What it costs to leave out experts that weigh little, as measured while converting.

    threshold: of the weight of a token's experts together; those with a smaller part of it are left out. nats: how much
    less is known of the next token, a token (the Kullback-Leibler divergence from what the model says with all its
    experts). experts: that stay, of a token, on average. missed: of experts that a token needs and that are not in
    memory, where a quarter of all is, how many there are for each one without leaving out.
    """

    threshold: float
    nats: float
    experts: float
    missed: float

    @property
    def loss(self) -> float:
        """By how much less likely a token is: 0.03 for 3 %."""
        return math.expm1(self.nats)


class NeuronLoss(NamedTuple):
    """What it costs to compute only those neurons of a sparse model that a predictor takes to be active, as measured
    while converting.

    threshold: the probability to be active, as the predictor has it, below which a neuron is left out. nats: as
    ExpertLoss has it. computed: the part of all neurons that stays. recall: of those that are active, the part that
    stays. misses: as `Header.activity` has them, of units as the predictor needs them, on average over all layers.
    """

    threshold: float
    nats: float
    computed: float
    recall: float
    misses: list[int]

    @property
    def loss(self) -> float:
        """By how much less likely a token is: 0.03 for 3 %."""
        return math.expm1(self.nats)


def score_of(probability: float) -> float:
    """The score of a neuron that a predictor takes to be active with this probability (converters/predictor.py)."""
    return NormalDist().inv_cdf(probability)


LeftOut = ExpertLoss | NeuronLoss
"""What a model that is loaded with `max_loss` leaves out."""


@dataclass
class Section:
    """A run of bytes in the file; `checksum` is xxh3_64 in 16 hexadecimal digits."""

    offset: int
    length: int
    checksum: str = "0" * 16


@dataclass(frozen=True)
class Tensor:
    """A tensor in a section. format: a weight format, `vector` (float32), or `headers` (tile headers, see neurons)."""

    section: str
    offset: int
    format: str
    rows: int
    columns: int

    @property
    def length(self) -> int:
        if self.format == "vector":
            return 4 * (-(-self.rows // BLOCK) * BLOCK)
        if self.format == "headers":
            return self.columns * -(-self.rows // TILE)
        return FORMATS[self.format].matrix_bytes(self.rows, self.columns)


@dataclass(frozen=True)
class Neurons:
    """A layer's feed-forward part: groups of 32 neurons, laid out as `kernels/groups.py` says; of a sparse model, units
    of fewer, as `kernels/neuron_rows.py` says; of a mixture of experts, units of several groups, as
    `kernels/expert_units.py` says.

    section, group_bytes: where the groups' base planes stand, and the length of one. details, detail_bytes: the same of
    their detail planes; None and 0 where the formats are not split and a base is the whole group.
    """

    section: str
    details: str | None
    groups: int
    group_bytes: int
    detail_bytes: int
    gate_up: str
    down: str

    def parts(self) -> list[tuple[str, int]]:
        """The sections that the groups stand in, each with the bytes of a group in it; the bases' comes first."""
        bases = [(self.section, self.group_bytes)]
        return bases if self.details is None else [*bases, (self.details, self.detail_bytes)]

    def units(self, config: Config) -> NeuronUnits:
        """How a sparse model's neurons stand in them."""
        return neuron_units(config.hidden_size, self.gate_up, self.down, gated=config.gated)

    def predicted(self, config: Config, layer: int) -> "PredictedNeurons":
        """A sparse layer's neurons as they stand for a predictor."""
        units = neuron_units(config.hidden_size, self.gate_up, self.down, gated=config.gated, predicted=True)
        return PredictedNeurons(predicted_section(layer), None, units.count(config.intermediate_size),
                                units.unit_bytes, 0, self.gate_up, self.down)

    def expert_units(self, config: Config) -> ExpertUnits:
        """How the experts of a mixture of experts stand in them."""
        return ExpertUnits.of(config.hidden_size, config.intermediate_size, FORMATS[self.gate_up],
                              FORMATS[self.down], self.groups // config.experts)

    def choices(self, config: Config) -> tuple[int, int]:
        """Where a token needs only some neurons: how many parts of the layer are needed or not, each as a whole, and
        the bytes of one. They are units, or experts."""
        units = self.expert_units(config).per_expert if config.experts else 1
        return self.groups // units, units * self.group_bytes


@dataclass(frozen=True)
class PredictedNeurons(Neurons):
    """Neurons of a sparse layer with their rows of the matrix that decides: a predictor says which are computed."""

    def units(self, config: Config) -> NeuronUnits:
        return neuron_units(config.hidden_size, self.gate_up, self.down, gated=config.gated, predicted=True)


@dataclass(frozen=True)
class UnitLayout:
    """Weights that can be read piece by piece: `count` units of `unit_bytes`, the last what is left of `length` bytes.

    name: of the section that they fill, or of the tensor, where they are only a part of one. section, offset: where
    they are.
    """

    name: str
    section: str
    offset: int
    unit_bytes: int
    count: int
    length: int

    def bytes_of(self, first: int) -> int:
        """Of the units from `first` on."""
        return self.length - min(first * self.unit_bytes, self.length)


@dataclass
class Header:
    """All that a bundle says of itself."""

    config: Config
    generation: dict[str, Any]
    quantization: dict[str, Any]
    provenance: dict[str, Any]
    sections: dict[str, Section] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    neurons: list[Neurons] = field(default_factory=list)
    """Of all layers but the first `config.dense_layers`."""
    left_out: LeftOut | None = None
    """What a model is loaded to leave out; not in the file (`leaving_out`)."""

    @property
    def activity(self) -> list[list[int]]:
        """Where a token needs only some neurons, for each layer, as seen while converting: how many of 10,000 of its
        units, or experts, a token needs and does not find, where those that were needed last are in memory, 0, 1 ...
        ACTIVITY_PARTS - 1 of so many parts of them. Where nothing is known, as if all were needed."""
        found: list[list[int]] = self.quantization["activity"]
        return found

    @property
    def losses(self) -> list[LeftOut]:
        """What it costs to leave out a mixture's experts, or a sparse model's neurons, by ascending threshold; empty
        where it was not measured."""
        def curve(name: str) -> Iterable[Iterable[Any]]:
            found: Iterable[Iterable[Any]] = self.quantization.get(name, [])
            return found

        if self.config.experts:
            return [ExpertLoss(*point) for point in curve("expert_loss")]
        return [NeuronLoss(*point) for point in curve("neuron_loss")] if self.config.sparse else []

    def left_out_for(self, max_loss: float) -> LeftOut | None:
        """The most that may be left out where a token may become less likely by `max_loss`: 0.03 for 3 %. None where
        nothing may."""
        allowed = [point for point in self.losses if point.nats <= math.log1p(max_loss)] if max_loss else []
        return allowed[-1] if allowed else None

    @property
    def predicted(self) -> list[PredictedNeurons]:
        """All layers' neurons as they stand for predictors; empty where there are none. Of a header as it is in the
        file."""
        return [n.predicted(self.config, layer) for layer, n in enumerate(self.neurons)
                if PREDICTORS in self.sections]

    def leaving_out(self, left_out: LeftOut | None) -> "Header":
        """The header of the same bundle for a model that leaves this out. Of a sparse model then other sections are
        used: its neurons as a predictor chooses them."""
        neurons = self.predicted if isinstance(left_out, NeuronLoss) else self.neurons
        return replace(self, left_out=left_out, neurons=list(neurons))

    @property
    def predicts(self) -> bool:
        """Whether predictors say which neurons are computed."""
        return isinstance(self.left_out, NeuronLoss)

    @property
    def zeros(self) -> dict[str, int]:
        """How many weights of each of PRUNED_KINDS were exactly 0 before they were quantized, where a model was
        pruned."""
        found: dict[str, int] = self.quantization.get("pruning", {}).get("zeros", {})
        return found

    def to_json(self) -> bytes:
        return json.dumps({
            "architecture": self.config.architecture,
            "config": self.config.to_json(),
            "generation": self.generation,
            "quantization": self.quantization,
            "provenance": self.provenance,
            "sections": {name: asdict(s) for name, s in self.sections.items()},
            "tensors": {name: asdict(t) for name, t in self.tensors.items()},
            "neurons": [asdict(n) for n in self.neurons],
        }, separators=(",", ":"), ensure_ascii=True).encode()

    def matrices_in_slabs(self) -> dict[str, Tensor]:
        """The embedding, where it is not the output head, and the output head, by section."""
        found = {t.section: t for t in self.tensors.values()}
        return {name: found[name] for name in (EMBEDDING, HEAD) if name in found}

    def unit_layouts(self) -> list[UnitLayout]:
        """What is read and checked piece by piece, in the order of its checksums: every layer's neuron groups, then
        their details, and its neurons for a predictor; the slabs of the embedding and of the output head. Of a model
        that is loaded to leave something out, what that does not use is not among them."""
        neurons = list(self.neurons)
        if not self.predicts and (predicted := self.predicted):
            neurons = [kind for both in zip(self.neurons, predicted, strict=True) for kind in both]
        groups = [UnitLayout(section, section, 0, size, n.groups, n.groups * size)
                  for n in neurons for section, size in n.parts()]
        return groups + [_in_slabs(name, t) for name, t in self.matrices_in_slabs().items()]

    def streamable(self) -> list[UnitLayout]:
        """What need not stay in memory, in the order of use: every layer's attention matrices, and in sparse models the
        one that decides, which are in the resident section and go by their tensors' names, its neuron groups and their
        details; then the output head."""
        sections, unused = {layout.name: layout for layout in self.unit_layouts()}, set(self.unused())
        found = []
        for spec in self.config.tensors():
            if spec.name in unused:
                continue
            if spec.role is Role.DOWN:  # stands for all matrices of its layer that share their sections
                assert spec.layer is not None
                found += [sections[section] for section, _ in
                          self.neurons[spec.layer - self.config.dense_layers].parts()]
            elif (spec.is_matrix and spec.role not in self.config.in_groups | ALWAYS_RESIDENT
                  and self.tensors[spec.name].section == RESIDENT):
                found.append(_in_slabs(spec.name, self.tensors[spec.name]))
        return [*found, sections[HEAD]]

    def unused(self) -> dict[str, UnitLayout]:
        """By name, what of the resident section is not used: what decides, where predictors do."""
        return {spec.name: _in_slabs(spec.name, self.tensors[spec.name]) for spec in self.config.tensors()
                if self.predicts and spec.role in FEED_FORWARD - self.config.in_groups}

    @property
    def embedding(self) -> Tensor:
        """The embedding, which may be the output head too."""
        return self.tensors[next(spec.name for spec in self.config.tensors() if spec.role is Role.EMBEDDING)]


def _in_slabs(name: str, matrix: Tensor) -> UnitLayout:
    return UnitLayout(name, matrix.section, matrix.offset, SLAB * FORMATS[matrix.format].tile_bytes(matrix.columns),
                      slabs(matrix.rows), matrix.length)


def slabs(rows: int) -> int:
    """How many slabs a matrix of so many rows has."""
    return -(-rows // (SLAB * TILE))


def neuron_section(layer: int) -> str:
    """The name of the section of a layer's neuron groups: of their bases, where they have details."""
    return f"layers.{layer}.neurons"


def predicted_section(layer: int) -> str:
    """The name of the section of a sparse layer's neurons for a predictor."""
    return f"layers.{layer}.predicted"


def predictor(layer: int) -> tuple[str, str]:
    """The names of a layer's two predictor matrices, without what follows them (.weight, .bias)."""
    return f"model.layers.{layer}.mlp.predictor.in", f"model.layers.{layer}.mlp.predictor.out"


def predictor_rank(config: Config) -> int:
    """Rows of the first of them, and columns of the second."""
    return max(config.hidden_size // 16 // BLOCK, 1) * BLOCK


def detail_section(layer: int) -> str:
    """The name of the section of the details of a layer's neuron groups."""
    return f"layers.{layer}.details"


def section_of(role: Role, *, tied: bool) -> str:
    """The section of a matrix that is not in neuron groups; tied: the embedding is the head."""
    if role is Role.EMBEDDING:
        return HEAD if tied else EMBEDDING
    return HEAD if role is Role.HEAD else RESIDENT


def down_headers(layer: int) -> str:
    """The name of the tensor that holds the tile headers of a layer's down projection."""
    return f"model.layers.{layer}.mlp.down_proj.headers"
