"""Where everything goes in a bundle, before anything is written: sizes depend on shapes and formats alone."""

from collections.abc import Mapping

from edgert.bundle import Header, Neurons, Section, Tensor
from edgert.bundle.header import (
    ACTIVITY_PARTS,
    ALIGNMENT,
    CHAT_TEMPLATE,
    GROUP_CHECKSUMS,
    MAX_HEADER_BYTES,
    PREDICTORS,
    PREFIX_BYTES,
    RESIDENT,
    TENSOR_ALIGNMENT,
    TOKENIZER,
    detail_section,
    down_headers,
    neuron_section,
    predictor,
    predictor_rank,
    section_of,
)
from edgert.errors import SourceError
from edgert.kernels.expert_units import ExpertUnits
from edgert.kernels.formats import BLOCK, FORMATS
from edgert.kernels.groups import group_layout
from edgert.kernels.neuron_rows import ROW_FORMATS, neuron_units
from edgert.models.config import Config
from edgert.models.tensors import FeedForward, Role, feed_forward_parts

from .left_out import CURVE_BYTES
from .mix import Mix
from .presets import Preset
from .source import Source

PREDICTOR_FORMAT = "q8"
"""Of both matrices: with 4 bits what is left out by mistake costs three times as much, with 6 a quarter more
(docs/notes/sparse.md)."""


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _groups(config: Config, layer: int, part: FeedForward, formats: Mapping[str, str]) -> Neurons:
    """A layer's neurons in groups of 32."""
    gate_up = max((FORMATS[formats[rows.name]] for rows in part.by_rows), key=lambda form: form.block_bytes)
    down = FORMATS[formats[part.down.name]]
    group = group_layout(config.hidden_size, gate_up, down, gated=config.gated)
    return Neurons(neuron_section(layer), detail_section(layer) if group.detail.length else None,
                   -(-config.intermediate_size // BLOCK), group.base.length, group.detail.length, gate_up.name,
                   down.name)


def _units(config: Config, layer: int, part: FeedForward, formats: Mapping[str, str]) -> Neurons:
    """A sparse layer's neurons, but for the matrix that decides."""
    down = ROW_FORMATS[formats[part.down.name]]
    if config.hidden_size % BLOCK and down == "q4":
        down = "q8"  # what fills up a vector must be exactly 0, since it counts in the next norm
    up = ROW_FORMATS[formats[part.in_groups[0].name]] if part.in_groups else down
    units = neuron_units(config.hidden_size, up, down, gated=config.gated)
    return Neurons(neuron_section(layer), None, units.count(config.intermediate_size), units.unit_bytes, 0, up, down)


def _experts(config: Config, layer: int, part: FeedForward, formats: Mapping[str, str]) -> Neurons:
    """A layer's experts."""
    gate_up = max((FORMATS[formats[rows.name]] for rows in part.by_rows), key=lambda form: form.block_bytes)
    down = FORMATS[formats[part.down.name]]
    units = ExpertUnits.of(config.hidden_size, config.intermediate_size, gate_up, down)
    return Neurons(neuron_section(layer), None, config.experts * units.per_expert, units.unit_bytes, 0, gate_up.name,
                   down.name)


def lay_out(source: Source, preset: Preset | Mix, provenance: dict[str, object],
            instead: Mapping[str, str] | None = None, *, predictors: bool = False) -> Header:
    """The header of the bundle that a source becomes; only checksums are still to come. Raises SourceError.

    instead: formats of matrices, by name, that take the place of the preset's. predictors: of a sparse model, with
    predictors, and the neurons as these choose them.
    """
    config = source.config
    header = Header(config, dict(source.generation), {"preset": preset.name, **preset.record}, provenance)
    if config.selective:
        unknown = [10000 * (ACTIVITY_PARTS - part) // ACTIVITY_PARTS for part in range(ACTIVITY_PARTS)]
        header.quantization["activity"] = [list(unknown) for _ in range(config.num_hidden_layers - config.dense_layers)]
    if config.experts:
        header.quantization["expert_loss"] = []
    if predictors:
        header.quantization["neuron_loss"] = []
    tensors, formats = list(config.tensors()), preset.formats(source) | dict(instead or {})
    feed_forward = feed_forward_parts(tensors, sparse=config.sparse)
    lengths: dict[str, int] = {TOKENIZER: len(source.tokenizer_json.encode())}
    if source.chat_template is not None:
        lengths[CHAT_TEMPLATE] = len(source.chat_template.encode())

    def place(name: str, section: str, form: str, rows: int, columns: int) -> None:
        tensor = Tensor(section, _up(lengths.get(section, 0), TENSOR_ALIGNMENT), form, rows, columns)
        header.tensors[name] = tensor
        lengths[section] = tensor.offset + tensor.length

    for spec in tensors:
        if not spec.is_matrix:
            place(spec.name, RESIDENT, "vector", spec.shape[0], 1)
        elif spec.role not in config.in_groups:
            section = section_of(spec.role, tied=config.tie_word_embeddings)
            place(spec.name, section, formats[spec.name], *spec.shape)
        elif spec.role is Role.DOWN:
            layer = len(header.neurons)
            part = feed_forward[layer]
            laid_out = _experts if config.experts else _units if config.sparse else _groups
            neurons = laid_out(config, layer, part, formats)
            if not config.selective and (size := FORMATS[neurons.down].header_bytes):
                place(down_headers(layer), RESIDENT, "headers", config.hidden_size, size)
            header.neurons.append(neurons)
            lengths |= {section: neurons.groups * size for section, size in neurons.parts()}
            if predictors:
                of_predictor, (into, out) = neurons.predicted(config, layer), predictor(layer)
                lengths[of_predictor.section] = of_predictor.groups * of_predictor.group_bytes
                rank = predictor_rank(config)
                place(f"{into}.weight", PREDICTORS, PREDICTOR_FORMAT, rank, config.hidden_size)
                place(f"{out}.weight", PREDICTORS, PREDICTOR_FORMAT, config.intermediate_size, rank)
                place(f"{out}.bias", PREDICTORS, "vector", config.intermediate_size, 1)
    # Offsets are at most 14 digits: the room kept for the header is what it takes with all of them.
    header.sections = {name: Section(10 ** 14, length) for name, length in [*lengths.items(), (GROUP_CHECKSUMS, 0)]}
    header.sections[GROUP_CHECKSUMS].length = 8 * sum(layout.count for layout in header.unit_layouts())
    if (length := len(header.to_json()) + (CURVE_BYTES if config.experts or predictors else 0)) > MAX_HEADER_BYTES:
        raise SourceError(f"the model needs a bundle header of {length} bytes, more than {MAX_HEADER_BYTES}: "
                          "it has too many tensors, or a name far too long")
    offset = _up(PREFIX_BYTES + length, ALIGNMENT)
    for placed in header.sections.values():
        placed.offset = offset
        offset = _up(offset + placed.length, ALIGNMENT)
    return header
