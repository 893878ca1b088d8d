"""From the bytes of a header to what they say: nothing that docs/bundle-format.md forbids gets in."""

import json
import re
from collections.abc import Container, Mapping
from dataclasses import fields
from typing import Any

from edgert.errors import BundleError
from edgert.kernels.block_packing import group_rooms, tile_rooms
from edgert.kernels.formats import BLOCK, FORMATS, TILE, Format
from edgert.kernels.groups import group_layout
from edgert.kernels.neuron_rows import ROW_FORMATS
from edgert.models.config import Config
from edgert.models.families import FAMILIES
from edgert.models.tensors import Role

from .header import (
    ACTIVITY_PARTS,
    ALIGNMENT,
    CHAT_TEMPLATE,
    EMBEDDING,
    GROUP_CHECKSUMS,
    HEAD,
    MOST_NATS,
    PREDICTORS,
    PREFIX_BYTES,
    PRUNED_KINDS,
    RESIDENT,
    TENSOR_ALIGNMENT,
    TOKENIZER,
    Header,
    Neurons,
    Section,
    Tensor,
    detail_section,
    down_headers,
    neuron_section,
    predicted_section,
    predictor,
    predictor_rank,
    section_of,
)

_FIELDS = {"architecture", "config", "generation", "quantization", "provenance", "sections", "tensors", "neurons"}


def header_of(data: bytes, file_length: int) -> Header:
    """Decode and check a header. Raises BundleError, its message to follow "PATH: "."""
    try:
        values = json.loads(data.decode("ascii"), object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"the header is not JSON ({type(error).__name__}); convert the model again") from None
    try:
        header = _decoded(values)
        _check(header, PREFIX_BYTES + len(data), file_length)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        shown = "".join(c if c.isprintable() else "?" for c in what[:400])
        raise BundleError(f"the header is not valid: {shown}; convert the model again") from None
    return header


def _decoded(values: Any) -> Header:
    if not isinstance(values, dict) or set(values) != _FIELDS:
        raise ValueError(f"it is not an object of {', '.join(sorted(_FIELDS))}")
    family = FAMILIES.get(values["architecture"]) if isinstance(values["architecture"], str) else None
    if family is None:
        raise ValueError(f"unknown architecture {values['architecture']!r}, known: {', '.join(FAMILIES)}")
    for name in ("config", "generation", "quantization", "provenance", "sections", "tensors"):
        if not isinstance(values[name], dict):
            raise ValueError(f"{name} is not an object")
    _fields("config", family.Config.usual() | values["config"], family.Config)
    return Header(
        config=family.Config.from_json(values["config"]),
        generation=values["generation"], quantization=values["quantization"], provenance=values["provenance"],
        sections={n: Section(**_fields(f"section {n!r}", s, Section)) for n, s in values["sections"].items()},
        tensors={n: Tensor(**_fields(f"tensor {n!r}", t, Tensor)) for n, t in values["tensors"].items()},
        neurons=[Neurons(**_fields("a layer's neurons", n, Neurons)) for n in values["neurons"]])


def _check(header: Header, header_end: int, file_length: int) -> None:
    layers = header.config.num_hidden_layers - header.config.dense_layers
    if len(header.neurons) != layers:  # before tensors(), which are as many as the number claims
        raise ValueError(f"{len(header.neurons)} neuron sections for {layers} layers")
    _check_generation(header.generation, header.config.vocab_size)
    if header.config.selective:
        _check_activity(header.quantization.get("activity"), layers)
    if header.config.experts:
        _check_expert_loss(header.quantization.get("expert_loss", []), header.config.experts_per_token)
    if header.config.sparse:
        _check_neuron_loss(header.quantization.get("neuron_loss", []), there=PREDICTORS in header.sections)
    if "pruning" in header.quantization:
        _check_pruning(header.quantization["pruning"])
    _check_sections(header, header_end, file_length)
    _check_neurons(header)
    _check_tensors(header)


def _check_sections(header: Header, header_end: int, file_length: int) -> None:
    names = {TOKENIZER, RESIDENT, HEAD, GROUP_CHECKSUMS, *map(neuron_section, range(len(header.neurons)))}
    names |= {detail_section(layer) for layer, n in enumerate(header.neurons) if n.details is not None}
    names |= {CHAT_TEMPLATE} & set(header.sections)
    if header.config.sparse and PREDICTORS in header.sections:
        names |= {PREDICTORS, *map(predicted_section, range(len(header.neurons)))}
    if not header.config.tie_word_embeddings:
        names.add(EMBEDDING)
    _same_names("section", header.sections, names)
    end = header_end
    for name, s in sorted(header.sections.items(), key=lambda item: _whole(item[1].offset, "a section's offset")):
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


def _expected_tensors(header: Header) -> dict[str, tuple[str, Container[str], int, int]]:
    """Section, possible formats, rows and columns of every tensor, by name."""
    config = header.config
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
    for layer, n in enumerate([] if config.selective else header.neurons):
        if size := FORMATS[n.down].header_bytes:
            expected[down_headers(layer)] = (RESIDENT, ("headers",), config.hidden_size, size)
    for layer in range(len(header.neurons) if PREDICTORS in header.sections else 0):
        into, out = predictor(layer)
        rank, neurons = predictor_rank(config), config.intermediate_size
        expected[f"{into}.weight"] = PREDICTORS, tuple(FORMATS), rank, config.hidden_size
        expected[f"{out}.weight"] = PREDICTORS, tuple(FORMATS), neurons, rank
        expected[f"{out}.bias"] = PREDICTORS, ("vector",), neurons, 1
    return expected


def _check_tensors(header: Header) -> None:
    expected = _expected_tensors(header)
    _same_names("tensor", header.tensors, set(expected))
    ends: dict[str, int] = {}
    for name, t in sorted(header.tensors.items(), key=lambda item: _whole(item[1].offset, "a tensor's offset")):
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
        if ends[section] > header.sections[section].length:
            raise ValueError(f"tensor {name!r} reaches past the end of section {section!r}")
    if (end := ends.get(PREDICTORS)) is not None and end != header.sections[PREDICTORS].length:
        raise ValueError(f"section {PREDICTORS!r} does not end with its last tensor")
    for section, matrix in header.matrices_in_slabs().items():
        if matrix.length != header.sections[section].length:
            raise ValueError(f"section {section!r} is not one matrix")
    units = sum(layout.count for layout in header.unit_layouts())
    if header.sections[GROUP_CHECKSUMS].length != 8 * units:
        raise ValueError(f"section {GROUP_CHECKSUMS!r} is not 8 bytes for each of {units} groups and slabs")


def _check_neurons(header: Header) -> None:
    config = header.config
    for layer, n in enumerate(header.neurons):
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
        parts = [(section, groups, size) for section, size in n.parts()]
        if PREDICTORS in header.sections:
            predicted = n.predicted(config, layer)
            parts.append((predicted.section, predicted.groups, predicted.group_bytes))
        for section, count, size in parts:
            if header.sections[section].length != count * size:
                raise ValueError(f"section {section!r} is not {count} groups of {size} bytes")


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


def _check_expert_loss(curve: Any, per_token: int) -> None:
    if not isinstance(curve, list):
        raise ValueError("what leaving out experts costs is not a list")
    before, spent = 0.0, 0.0
    for point in curve:
        if not isinstance(point, list) or len(point) != 4 or not all(type(value) in (int, float) for value in point):
            raise ValueError("what leaving out experts costs is not a list of four numbers each")
        threshold, nats, experts, missed = point
        if not (before < threshold < 1 and spent <= nats <= MOST_NATS and 1 <= experts <= per_token
                and 0 <= missed <= 1):
            raise ValueError(f"leaving out experts below {threshold} for {nats} nats leaves {experts} of {per_token}, "
                             f"and {missed} of those missed")
        before, spent = threshold, nats


def _check_neuron_loss(curve: Any, *, there: bool) -> None:
    """there: whether there are predictors."""
    if not isinstance(curve, list):
        raise ValueError("what leaving out neurons costs is not a list")
    if curve and not there:
        raise ValueError(f"it says what leaving out neurons costs, and section {PREDICTORS!r} is missing")
    before, spent = 0.0, 0.0
    for point in curve:
        if (not isinstance(point, list) or len(point) != 5
                or not all(type(value) in (int, float) for value in point[:4])):
            raise ValueError("what leaving out neurons costs is not a list of four numbers and a list each")
        threshold, nats, computed, recall, misses = point
        if not (before < threshold < 1 and spent <= nats <= MOST_NATS and 0 <= computed <= 1 and 0 <= recall <= 1):
            raise ValueError(f"leaving out neurons below {threshold} for {nats} nats leaves {computed} of all and "
                             f"{recall} of those that are active")
        _check_activity([misses], 1)
        before, spent = threshold, nats


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
