"""Where everything goes in a bundle, before anything is written: sizes depend on shapes and formats alone."""

from edgert.bundle import Header, Neurons, Section, Tensor
from edgert.bundle.header import (
    ALIGNMENT,
    CHAT_TEMPLATE,
    GROUP_CHECKSUMS,
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    RESIDENT,
    TENSOR_ALIGNMENT,
    TOKENIZER,
    detail_section,
    down_headers,
    neuron_section,
    section_of,
)
from edgert.errors import SourceError
from edgert.kernels.formats import BLOCK, FORMATS
from edgert.kernels.groups import group_layout
from edgert.models.tensors import FEED_FORWARD, Role, feed_forward_parts

from .presets import Preset
from .source import Source


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def lay_out(source: Source, preset: Preset, provenance: dict[str, object]) -> Header:
    """The header of the bundle that a source becomes; only checksums are still to come. Raises SourceError."""
    config = source.config
    header = Header(config, dict(source.generation), {"preset": preset.name}, provenance)
    tensors, formats = list(config.tensors()), preset.formats(source)
    feed_forward = feed_forward_parts(tensors)
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
        elif spec.role not in FEED_FORWARD:
            section = section_of(spec.role, tied=config.tie_word_embeddings)
            place(spec.name, section, formats[spec.name], *spec.shape)
        elif spec.role is Role.DOWN:
            layer = len(header.neurons)
            part = feed_forward[layer]
            gate_up = max((FORMATS[formats[rows.name]] for rows in part.by_rows), key=lambda form: form.block_bytes)
            down = FORMATS[formats[part.down.name]]
            if down.header_bytes:
                place(down_headers(layer), RESIDENT, "headers", config.hidden_size, down.header_bytes)
            group = group_layout(config.hidden_size, gate_up, down, gated=config.gated)
            neurons = Neurons(neuron_section(layer), detail_section(layer) if group.detail.length else None,
                              -(-config.intermediate_size // BLOCK), group.base.length, group.detail.length,
                              gate_up.name, down.name)
            header.neurons.append(neurons)
            lengths |= {section: neurons.groups * size for section, size in neurons.parts()}
    lengths[GROUP_CHECKSUMS] = 8 * sum(layout.count for layout in header.unit_layouts())
    # Offsets are at most 14 digits: the room kept for the header is what it takes with all of them.
    header.sections = {name: Section(10 ** 14, length) for name, length in lengths.items()}
    if (length := len(header.to_json())) > MAX_HEADER_BYTES:
        raise SourceError(f"the model needs a bundle header of {length} bytes, more than {MAX_HEADER_BYTES}: "
                          "it has too many tensors, or a name far too long")
    offset = _up(PREFIX_BYTES + length, ALIGNMENT)
    for placed in header.sections.values():
        placed.offset = offset
        offset = _up(offset + placed.length, ALIGNMENT)
    return header
