"""The bundle's header: what is where. The format is specified in docs/bundle-format.md; nothing it forbids gets in."""

import json
import re
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from edgert.errors import BundleError
from edgert.kernels.block_packing import group_rooms, tile_rooms
from edgert.kernels.expert_units import ExpertUnits
from edgert.kernels.formats import BLOCK, FORMATS, SLAB, TILE, Format
from edgert.kernels.groups import group_layout
from edgert.kernels.neuron_rows import ROW_FORMATS, NeuronUnits, neuron_units
from edgert.models.config import Config
from edgert.models.families import FAMILIES
from edgert.models.tensors import ALWAYS_RESIDENT, Role

MAGIC = b"EDGERT\r\n"
"""Carriage return and newline show a file mangled by a text-mode copy."""
VERSION = 3
PREFIX_BYTES = 32
"""Magic, uint32 version, 4 zero bytes, uint64 header length, uint64 xxh3_64 of the header; little-endian."""
MAX_HEADER_BYTES = 4 << 20
ALIGNMENT = 4096
TENSOR_ALIGNMENT = 64

TOKENIZER, CHAT_TEMPLATE, RESIDENT, HEAD, EMBEDDING, GROUP_CHECKSUMS = (
    "tokenizer", "chat_template", "resident", "head", "embedding", "group_checksums")


ACTIVITY_PARTS = 16
"""For so many sizes of a window it is known what of a sparse layer is missing in it."""
PRUNED_KINDS = ("attention", "feed-forward")
"""The kinds of matrices whose weights may be pruned."""
_FIELDS = {"architecture", "config", "generation", "quantization", "provenance", "sections", "tensors", "neurons"}


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

    @property
    def activity(self) -> list[list[int]]:
        """Where a token needs only some neurons, for each layer, as seen while converting: how many of 10,000 of its
        units, or experts, a token needs and does not find, where those that were needed last are in memory, 0, 1 ...
        ACTIVITY_PARTS - 1 of so many parts of them. Where nothing is known, as if all were needed."""
        found: list[list[int]] = self.quantization["activity"]
        return found

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

    @classmethod
    def from_json(cls, data: bytes, file_length: int) -> "Header":
        """Decode and check a header. Raises BundleError, its message to follow "PATH: "."""
        try:
            values = json.loads(data.decode("ascii"), object_pairs_hook=_object, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"the header is not JSON ({type(error).__name__}); convert the model again") from None
        try:
            header = cls._decode(values)
            header._check(PREFIX_BYTES + len(data), file_length)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            shown = "".join(c if c.isprintable() else "?" for c in what[:400])
            raise BundleError(f"the header is not valid: {shown}; convert the model again") from None
        return header

    @classmethod
    def _decode(cls, values: Any) -> "Header":
        if not isinstance(values, dict) or set(values) != _FIELDS:
            raise ValueError(f"it is not an object of {', '.join(sorted(_FIELDS))}")
        family = FAMILIES.get(values["architecture"]) if isinstance(values["architecture"], str) else None
        if family is None:
            raise ValueError(f"unknown architecture {values['architecture']!r}, known: {', '.join(FAMILIES)}")
        for name in ("config", "generation", "quantization", "provenance", "sections", "tensors"):
            if not isinstance(values[name], dict):
                raise ValueError(f"{name} is not an object")
        _fields("config", family.Config.usual() | values["config"], family.Config)
        return cls(
            config=family.Config.from_json(values["config"]),
            generation=values["generation"], quantization=values["quantization"], provenance=values["provenance"],
            sections={n: Section(**_fields(f"section {n!r}", s, Section)) for n, s in values["sections"].items()},
            tensors={n: Tensor(**_fields(f"tensor {n!r}", t, Tensor)) for n, t in values["tensors"].items()},
            neurons=[Neurons(**_fields("a layer's neurons", n, Neurons)) for n in values["neurons"]])

    def _check(self, header_end: int, file_length: int) -> None:
        layers = self.config.num_hidden_layers - self.config.dense_layers
        if len(self.neurons) != layers:  # before tensors(), which are as many as the number claims
            raise ValueError(f"{len(self.neurons)} neuron sections for {layers} layers")
        _check_generation(self.generation, self.config.vocab_size)
        if self.config.selective:
            _check_activity(self.quantization.get("activity"), layers)
        if "pruning" in self.quantization:
            _check_pruning(self.quantization["pruning"])
        self._check_sections(header_end, file_length)
        self._check_neurons()
        self._check_tensors()

    def _check_sections(self, header_end: int, file_length: int) -> None:
        names = {TOKENIZER, RESIDENT, HEAD, GROUP_CHECKSUMS, *map(neuron_section, range(len(self.neurons)))}
        names |= {detail_section(layer) for layer, n in enumerate(self.neurons) if n.details is not None}
        names |= {CHAT_TEMPLATE} & set(self.sections)
        if not self.config.tie_word_embeddings:
            names.add(EMBEDDING)
        _same_names("section", self.sections, names)
        end = header_end
        for name, s in sorted(self.sections.items(), key=lambda item: _whole(item[1].offset, "a section's offset")):
            _whole(s.length, f"the length of section {name!r}")
            if s.offset % ALIGNMENT or s.offset < end:
                raise ValueError(f"section {name!r} at offset {s.offset} is misaligned or overlaps what is before it")
            end = s.offset + s.length
            if end > file_length:
                raise ValueError(f"section {name!r} ends at {end}, past the end of the file at {file_length}")
            if not isinstance(s.checksum, str) or not re.fullmatch("[0-9a-f]{16}", s.checksum):
                raise ValueError(f"the checksum of section {name!r} is {s.checksum!r}")
        if end != file_length:
            raise ValueError(f"the sections end at {end}, the file at {file_length}")

    def _expected_tensors(self) -> dict[str, tuple[str, Container[str], int, int]]:
        """Section, possible formats, rows and columns of every tensor, by name."""
        config = self.config
        expected: dict[str, tuple[str, Container[str], int, int]] = {}
        for spec in config.tensors():
            if not spec.is_matrix:
                expected[spec.name] = (RESIDENT, ("vector",), spec.shape[0], 1)
            elif spec.role not in config.in_groups:
                rows, columns = spec.shape
                section = section_of(spec.role, tied=config.tie_word_embeddings)
                # Rows of the embeddings are read one at a time, which sized formats do not offer.
                by_rows = spec.role in (Role.EMBEDDING, Role.POSITION)
                expected[spec.name] = (section, tuple(FORMATS) if by_rows else FORMATS, rows, columns)
        for layer, n in enumerate([] if config.selective else self.neurons):
            if size := FORMATS[n.down].header_bytes:
                expected[down_headers(layer)] = (RESIDENT, ("headers",), config.hidden_size, size)
        return expected

    def _check_tensors(self) -> None:
        expected = self._expected_tensors()
        _same_names("tensor", self.tensors, set(expected))
        ends: dict[str, int] = {}
        for name, t in sorted(self.tensors.items(), key=lambda item: _whole(item[1].offset, "a tensor's offset")):
            section, formats, *shape = expected[name]
            if t.section != section:
                raise ValueError(f"tensor {name!r} is in section {t.section!r}, expected {section!r}")
            if t.format not in formats:
                raise ValueError(f"tensor {name!r} has format {t.format!r}")
            if [_whole(v, f"a dimension of {name!r}") for v in (t.rows, t.columns)] != shape:
                raise ValueError(f"tensor {name!r} has shape {t.rows} x {t.columns}")
            if t.format in FORMATS:
                _check_room(FORMATS[t.format], tile_rooms(t.columns), f"tensor {name!r}")
            if t.offset % TENSOR_ALIGNMENT or t.offset < ends.get(section, 0):
                raise ValueError(f"tensor {name!r} is misaligned or overlaps another")
            ends[section] = t.offset + t.length
            if ends[section] > self.sections[section].length:
                raise ValueError(f"tensor {name!r} reaches past the end of section {section!r}")
        for section, matrix in self.matrices_in_slabs().items():
            if matrix.length != self.sections[section].length:
                raise ValueError(f"section {section!r} is not one matrix")
        units = sum(layout.count for layout in self.unit_layouts())
        if self.sections[GROUP_CHECKSUMS].length != 8 * units:
            raise ValueError(f"section {GROUP_CHECKSUMS!r} is not 8 bytes for each of {units} groups and slabs")

    def _check_neurons(self) -> None:
        config = self.config
        for layer, n in enumerate(self.neurons):
            if n.section != neuron_section(layer):
                raise ValueError(f"the neurons of layer {layer} are in section {n.section!r}")
            if n.gate_up not in FORMATS or n.down not in FORMATS:
                raise ValueError(f"the neurons of layer {layer} have formats {n.gate_up!r} and {n.down!r}")
            groups = _whole(n.groups, "a number of groups")
            base, detail = (_whole(size, "the bytes of a group") for size in (n.group_bytes, n.detail_bytes))
            expected = _groups(config, n)
            if (groups, base, detail) != expected:
                raise ValueError(f"layer {layer} has {groups} groups of {base} bytes and {detail} of details")
            if n.details != (detail_section(layer) if expected[2] else None):
                raise ValueError(f"the details of layer {layer} are in section {n.details!r}")
            for section, size in n.parts():
                if self.sections[section].length != groups * size:
                    raise ValueError(f"section {section!r} is not {groups} groups of {size} bytes")

    def matrices_in_slabs(self) -> dict[str, Tensor]:
        """The embedding, where it is not the output head, and the output head, by section."""
        found = {t.section: t for t in self.tensors.values()}
        return {name: found[name] for name in (EMBEDDING, HEAD) if name in found}

    def unit_layouts(self) -> list[UnitLayout]:
        """What is read and checked piece by piece, in the order of its checksums: every layer's neuron groups, then
        their details; the slabs of the embedding and of the output head."""
        groups = [UnitLayout(section, section, 0, size, n.groups, n.groups * size)
                  for n in self.neurons for section, size in n.parts()]
        return groups + [_in_slabs(name, t) for name, t in self.matrices_in_slabs().items()]

    def streamable(self) -> list[UnitLayout]:
        """What need not stay in memory, in the order of use: every layer's attention matrices, and in sparse models the
        one that decides, which are in the resident section and go by their tensors' names, its neuron groups and their
        details; then the output head."""
        sections = {layout.name: layout for layout in self.unit_layouts()}
        found = []
        for spec in self.config.tensors():
            if spec.role is Role.DOWN:  # stands for all matrices of its layer that share their sections
                assert spec.layer is not None
                found += [sections[section] for section, _ in
                          self.neurons[spec.layer - self.config.dense_layers].parts()]
            elif (spec.is_matrix and spec.role not in self.config.in_groups | ALWAYS_RESIDENT
                  and self.tensors[spec.name].section == RESIDENT):
                found.append(_in_slabs(spec.name, self.tensors[spec.name]))
        return [*found, sections[HEAD]]

    @property
    def embedding(self) -> Tensor:
        """The embedding, which may be the output head too."""
        return self.tensors[next(spec.name for spec in self.config.tensors() if spec.role is Role.EMBEDDING)]


def _groups(config: Config, n: Neurons) -> tuple[int, int, int]:
    """How many groups a layer has, and the bytes of each and of its detail."""
    if config.sparse:
        if not {n.gate_up, n.down} <= set(ROW_FORMATS.values()) or (n.down == "q4" and config.hidden_size % BLOCK):
            raise ValueError(f"neurons that are not zero have formats {n.gate_up!r} and {n.down!r}")
        units = n.units(config)
        return units.count(config.intermediate_size), units.unit_bytes, 0
    gate_up, down = FORMATS[n.gate_up], FORMATS[n.down]
    if config.experts:
        if gate_up.room or down.room:
            raise ValueError(f"experts have formats {n.gate_up!r} and {n.down!r}")
        if n.groups < config.experts:
            raise ValueError(f"{config.experts} experts are in {n.groups} units")
        expert = n.expert_units(config)
        return config.experts * expert.per_expert, expert.unit_bytes, 0
    _check_room(gate_up, tile_rooms(config.hidden_size), "a layer's gate or up projection")
    _check_room(down, group_rooms(-(-config.hidden_size // TILE)), "a layer's down projection")
    layout = group_layout(config.hidden_size, gate_up, down, gated=config.gated)
    return -(-config.intermediate_size // BLOCK), layout.base.length, layout.detail.length


def _check_room(form: Format, rooms: range, what: str) -> None:
    if form.room and form.room not in rooms:
        raise ValueError(f"{what} has format {form.name!r}, whose size is not of its shape")


def _in_slabs(name: str, matrix: Tensor) -> UnitLayout:
    return UnitLayout(name, matrix.section, matrix.offset, SLAB * FORMATS[matrix.format].tile_bytes(matrix.columns),
                      slabs(matrix.rows), matrix.length)


def slabs(rows: int) -> int:
    """How many slabs a matrix of so many rows has."""
    return -(-rows // (SLAB * TILE))


def neuron_section(layer: int) -> str:
    """The name of the section of a layer's neuron groups: of their bases, where they have details."""
    return f"layers.{layer}.neurons"


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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name appears twice in an object")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _fields(what: str, values: Any, kind: Any) -> dict[str, Any]:
    names = [f.name for f in fields(kind)]
    if not isinstance(values, dict) or set(values) != set(names):
        raise ValueError(f"{what} is not an object of {', '.join(names)}")
    return values


def _same_names(kind: str, found: Mapping[str, Any], expected: set[str]) -> None:
    if missing := expected - set(found):
        raise ValueError(f"{kind} {min(missing)!r} is missing")
    if unknown := set(found) - expected:
        raise ValueError(f"{kind} {min(unknown)!r} is not known")


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError(f"{what} is {value!r}, expected a whole number")
    return value


def _check_activity(activity: Any, layers: int) -> None:
    if not isinstance(activity, list) or len(activity) != layers or not all(
            isinstance(of, list) and len(of) == ACTIVITY_PARTS for of in activity):
        raise ValueError(f"the activity of neurons is not {ACTIVITY_PARTS} numbers for each layer")
    for of in activity:
        for value in of:
            if _whole(value, "the activity of neurons") > 10000:
                raise ValueError(f"the activity of neurons is {value} of 10000")


def _check_pruning(pruning: Any) -> None:
    if not isinstance(pruning, dict) or not all(isinstance(pruning.get(name), str) for name in ("method", "pattern")):
        raise ValueError("pruning is not an object with a method and a pattern")
    zeros = pruning.get("zeros")
    if not isinstance(zeros, dict) or set(zeros) != set(PRUNED_KINDS):
        raise ValueError(f"the zeros of pruning are not an object of {' and '.join(PRUNED_KINDS)}")
    for value in zeros.values():
        _whole(value, "a number of pruned weights")


def _check_generation(generation: Mapping[str, Any], vocab_size: int) -> None:
    if set(generation) != {"bos_token_id", "eos_token_ids", "add_bos_token"}:
        raise ValueError("generation is not an object of bos_token_id, eos_token_ids, add_bos_token")

    def token(value: Any, what: str) -> None:
        if _whole(value, what) >= vocab_size:
            raise ValueError(f"{what} is {value}, past the vocabulary of {vocab_size}")

    if generation["bos_token_id"] is not None:
        token(generation["bos_token_id"], "bos_token_id")
    if not isinstance(generation["eos_token_ids"], list) or not isinstance(generation["add_bos_token"], bool):
        raise ValueError("eos_token_ids is not a list or add_bos_token not true or false")
    for value in generation["eos_token_ids"]:
        token(value, "an end-of-sequence token")
