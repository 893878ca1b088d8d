"""The bundle's header: what is where. The format is specified in docs/bundle-format.md; nothing it forbids gets in."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgert.errors import BundleError
from edgert.kernels.formats import BLOCK, FORMATS, TILE, Format
from edgert.models.families import FAMILIES
from edgert.models.llama import Config

MAGIC = b"EDGERT\r\n"
"""Carriage return and newline show a file mangled by a text-mode copy."""
VERSION = 1
PREFIX_BYTES = 32
"""Magic, uint32 version, 4 zero bytes, uint64 header length, uint64 xxh3_64 of the header; little-endian."""
MAX_HEADER_BYTES = 4 << 20
ALIGNMENT = 4096
TENSOR_ALIGNMENT = 64

TOKENIZER, CHAT_TEMPLATE, RESIDENT, HEAD, EMBEDDING, GROUP_CHECKSUMS = (
    "tokenizer", "chat_template", "resident", "head", "embedding", "group_checksums")


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
    """A layer's feed-forward part: groups of 32 neurons, each `group_bytes` long, in a section of their own.

    A group is 2 tiles of gate rows, 2 of up rows, and one block of the down projection for each tile of its rows.
    """

    section: str
    groups: int
    group_bytes: int
    gate_up: str
    down: str

    @staticmethod
    def layout(hidden_size: int, gate_up: Format, down: Format) -> tuple[int, int]:
        """Where a group's down blocks begin, and its length, in bytes."""
        start = 4 * gate_up.tile_bytes(hidden_size)
        end = start + -(-hidden_size // TILE) * down.block_bytes
        return start, -(-end // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT


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
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"the header is not JSON ({type(error).__name__}); convert the model again") from None
        try:
            header = cls._decode(values)
            header._check(file_length)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise BundleError(f"the header is not valid: {what[:200]}; convert the model again") from None
        return header

    @classmethod
    def _decode(cls, values: Any) -> "Header":
        family = FAMILIES.get(values["architecture"]) if isinstance(values["architecture"], str) else None
        if family is None:
            raise ValueError(f"unknown architecture {values['architecture']!r}, known: {', '.join(FAMILIES)}")
        for name in ("generation", "quantization", "provenance", "sections", "tensors"):
            if not isinstance(values[name], dict):
                raise ValueError(f"{name} is not an object")
        return cls(
            config=family.Config.from_json(values["config"]),
            generation=values["generation"], quantization=values["quantization"], provenance=values["provenance"],
            sections={name: Section(**s) for name, s in values["sections"].items()},
            tensors={name: Tensor(**t) for name, t in values["tensors"].items()},
            neurons=[Neurons(**n) for n in values["neurons"]])

    def _check(self, file_length: int) -> None:
        _check_generation(self.generation, self.config.vocab_size)
        self._check_sections(file_length)
        self._check_tensors()
        self._check_neurons()

    def _check_sections(self, file_length: int) -> None:
        end = PREFIX_BYTES
        for name, s in sorted(self.sections.items(), key=lambda item: _whole(item[1].offset, "a section's offset")):
            _whole(s.length, f"the length of section {name!r}")
            if s.offset % ALIGNMENT or s.offset < end:
                raise ValueError(f"section {name!r} at offset {s.offset} is misaligned or overlaps another")
            end = s.offset + s.length
            if end > file_length:
                raise ValueError(f"section {name!r} ends at {end}, past the end of the file at {file_length}")
            if not isinstance(s.checksum, str) or len(s.checksum) != 16 or int(s.checksum, 16) < 0:
                raise ValueError(f"the checksum of section {name!r} is {s.checksum!r}")
        for name in (TOKENIZER, RESIDENT, HEAD, GROUP_CHECKSUMS):
            self.sections[name]

    def _check_tensors(self) -> None:
        ends: dict[str, int] = {}
        for name, t in sorted(self.tensors.items(), key=lambda item: _whole(item[1].offset, "a tensor's offset")):
            for value in (t.rows, t.columns):
                if not 1 <= _whole(value, f"a dimension of {name!r}") <= 1 << 24:
                    raise ValueError(f"a dimension of {name!r} is {value}")
            if t.format not in FORMATS and t.format not in ("vector", "headers"):
                raise ValueError(f"tensor {name!r} has unknown format {t.format!r}")
            if t.offset % TENSOR_ALIGNMENT or t.offset < ends.get(t.section, 0):
                raise ValueError(f"tensor {name!r} is misaligned or overlaps another")
            ends[t.section] = t.offset + t.length
            if ends[t.section] > self.sections[t.section].length:
                raise ValueError(f"tensor {name!r} reaches past the end of section {t.section!r}")
        for name, shape in self.config.tensor_shapes().items():
            if ".mlp." not in name:
                tensor = self.tensors[name]
                if (tensor.rows, tensor.columns) != (shape if len(shape) == 2 else (shape[0], 1)):
                    raise ValueError(f"tensor {name!r} has shape {tensor.rows} x {tensor.columns}")
                if (tensor.format in FORMATS) != (len(shape) == 2):
                    raise ValueError(f"tensor {name!r} has format {tensor.format!r}")

    def _check_neurons(self) -> None:
        config = self.config
        if len(self.neurons) != config.num_hidden_layers:
            raise ValueError(f"{len(self.neurons)} neuron sections for {config.num_hidden_layers} layers")
        total = 0
        for layer, n in enumerate(self.neurons):
            gate_up, down = FORMATS[n.gate_up], FORMATS[n.down]
            _, length = Neurons.layout(config.hidden_size, gate_up, down)
            if (n.groups, n.group_bytes) != (-(-config.intermediate_size // BLOCK), length):
                raise ValueError(f"layer {layer} has {n.groups!r} groups of {n.group_bytes!r} bytes")
            if self.sections[n.section].length != n.groups * n.group_bytes:
                raise ValueError(f"section {n.section!r} is not {n.groups} groups of {n.group_bytes} bytes")
            if down.header_bytes:
                t = self.tensors[down_headers(layer)]
                if (t.format, t.rows, t.columns) != ("headers", config.hidden_size, down.header_bytes):
                    raise ValueError(f"tensor {down_headers(layer)!r} has the wrong shape")
            total += n.groups
        if self.sections[GROUP_CHECKSUMS].length != 8 * total:
            raise ValueError(f"section {GROUP_CHECKSUMS!r} is not 8 bytes for each of {total} groups")


def down_headers(layer: int) -> str:
    """The name of the tensor that holds the tile headers of a layer's down projection."""
    return f"model.layers.{layer}.mlp.down_proj.headers"


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError(f"{what} is {value!r}, expected a whole number")
    return value


def _check_generation(generation: Mapping[str, Any], vocab_size: int) -> None:
    def token(value: Any, what: str) -> None:
        if _whole(value, what) >= vocab_size:
            raise ValueError(f"{what} is {value}, past the vocabulary of {vocab_size}")

    if generation["bos_token_id"] is not None:
        token(generation["bos_token_id"], "bos_token_id")
    if not isinstance(generation["eos_token_ids"], list) or not isinstance(generation["add_bos_token"], bool):
        raise ValueError("eos_token_ids is not a list or add_bos_token not true or false")
    for value in generation["eos_token_ids"]:
        token(value, "an end-of-sequence token")


Progress = Callable[[int], None]
"""Called with the number of bytes done since the last call."""
