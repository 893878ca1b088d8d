"""A bundle's weights as numbers again, so that what reads a model to convert can read what was made of it."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from edgert.bundle import Bundle
from edgert.bundle.header import CHAT_TEMPLATE, TOKENIZER, Tensor
from edgert.errors import SourceError
from edgert.kernels.formats import FORMATS, TILE, Format, unpack, whole
from edgert.kernels.groups import group_layout, row_tiles_of
from edgert.models.tensors import feed_forward_parts

from .source import Grid, Source


class LayerWeights(NamedTuple):
    """A layer's feed-forward part, float32: gate and up of shape (neurons, hidden_size), down (hidden_size, neurons).
    gate is None where there is none."""

    gate: np.ndarray | None
    up: np.ndarray
    down: np.ndarray


class BundleWeights:
    """The weights of an open bundle of an ordinary model: neither sparse nor a mixture of experts, whose neurons stand
    otherwise. Raises SourceError for those."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.header = bundle, bundle.header
        config = self.header.config
        if config.selective:
            raise SourceError(f"{bundle.path}: which neurons of it matter is known exactly: it is a "
                              f"{'mixture of experts' if config.experts else 'sparse model'}; take an ordinary one")
        self.parts = feed_forward_parts(config.tensors())
        self.layer = lru_cache(1)(self.read_layer)

    def source(self) -> Source:
        """The bundle as something to convert: tensors are read when they are asked for."""
        tensors = {spec.name: _Tensor(self, spec.name, spec.shape) for spec in self.header.config.tensors()}
        template = (self.bundle.read_section(CHAT_TEMPLATE).decode()
                    if CHAT_TEMPLATE in self.header.sections else None)
        return Source(self.header.config, tensors, self.bundle.read_section(TOKENIZER).decode(),
                      self.header.generation, template)

    def tensor(self, tensor: Tensor, start: int, stop: int) -> np.ndarray:
        """Rows start to stop of a tensor that stands for itself; elements, of a vector."""
        at = self.header.sections[tensor.section].offset + tensor.offset
        if tensor.format == "vector":
            return np.frombuffer(self.bundle.read_at(at + 4 * start, 4 * (stop - start)), np.float32).copy()
        form = FORMATS[tensor.format]
        size, first, last = form.tile_bytes(tensor.columns), start // TILE, -(-stop // TILE)
        data = np.frombuffer(self.bundle.read_at(at + first * size, (last - first) * size), np.uint8)
        rows = unpack(form, data.reshape(last - first, size))
        return rows[start - first * TILE:stop - first * TILE, :tensor.columns]

    def read_layer(self, layer: int, *, base: bool = False) -> LayerWeights:
        """A layer's feed-forward part. base: as its base planes alone have it, where there are such."""
        n, part = self.header.neurons[layer], self.parts[layer]
        config = self.header.config
        gate_up, down = FORMATS[n.gate_up], FORMATS[n.down]
        layout = group_layout(config.hidden_size, gate_up, down, gated=part.gate is not None)
        bases, details = (None if name is None else
                          np.frombuffer(self.bundle.read_section(name), np.uint8).reshape(n.groups, -1)
                          for name in (n.section, n.details))
        assert bases is not None
        row_tiles, hidden_tiles = row_tiles_of(gated=part.gate is not None), -(-config.hidden_size // TILE)
        blocks = gate_up.blocks(config.hidden_size)

        tiles = bases[:, :layout.base.down].reshape(n.groups, row_tiles, -1)
        headers = tiles[:, :, :gate_up.header_bytes]
        of_base = tiles[:, :, gate_up.header_bytes:].reshape(n.groups, row_tiles, blocks, -1)
        of_detail = (None if details is None or not gate_up.detail_bytes else
                     details[:, :layout.detail.down].reshape(n.groups, row_tiles, blocks, -1))
        rows = _weights(gate_up, headers.reshape(n.groups * row_tiles, gate_up.header_bytes),
                        of_base.reshape(n.groups * row_tiles, blocks, -1),
                        None if of_detail is None else of_detail.reshape(n.groups * row_tiles, blocks, -1), base)
        rows = rows.reshape(n.groups, row_tiles // 2, 2 * TILE, -1)[..., :config.hidden_size]
        matrices = [np.ascontiguousarray(rows[:, at].reshape(-1, config.hidden_size)[:config.intermediate_size])
                    for at in range(row_tiles // 2)]

        def columns(plane: np.ndarray, start: int, size: int) -> np.ndarray:
            found = plane[:, start:start + hidden_tiles * size].reshape(n.groups, hidden_tiles, size)
            return np.ascontiguousarray(found.transpose(1, 0, 2))

        name = f"{part.down.name.removesuffix('.weight')}.headers"
        down_headers = np.zeros((hidden_tiles, 0), np.uint8)
        if (tensor := self.header.tensors.get(name)) is not None:
            at = self.header.sections[tensor.section].offset + tensor.offset
            down_headers = np.frombuffer(self.bundle.read_at(at, tensor.length), np.uint8).reshape(hidden_tiles, -1)
        of_details = (None if details is None or not down.detail_bytes else
                      columns(details, layout.detail.down, down.detail_bytes))
        of_down = _weights(down, down_headers, columns(bases, layout.base.down, down.base_bytes), of_details, base)
        return LayerWeights(matrices[0] if part.gate is not None else None, matrices[-1],
                            np.ascontiguousarray(of_down[:config.hidden_size, :config.intermediate_size]))


def _weights(form: Format, headers: np.ndarray, bases: np.ndarray, details: np.ndarray | None,
             base: bool) -> np.ndarray:
    """The weights of tiles whose planes these are: (tiles, blocks, bytes). base: without the details, whose bits are
    then in the middle of what they can be."""
    def with_details(bits: np.ndarray) -> np.ndarray:
        blocks = whole(form, bases, bits)
        return unpack(form, np.concatenate([headers, blocks.reshape(len(blocks), -1)], 1))

    if details is None:
        return unpack(form, np.concatenate([headers, bases.reshape(len(bases), -1)], 1))
    if not base:
        return with_details(details)
    least, most = with_details(np.zeros_like(details)), with_details(np.full_like(details, 0xFF))
    return least + (most - least) * np.float32(form.middle / (3 if form.name == "q4" else 15))


class _Tensor:
    """One tensor of a bundle (source.SourceTensor)."""

    def __init__(self, weights: BundleWeights, name: str, shape: tuple[int, ...]) -> None:
        self._weights, self._name, self.shape = weights, name, shape
        self._here = weights.header.tensors.get(name)
        self.type_name = self._here.format if self._here is not None else "neurons"

    def read(self, start: int, stop: int) -> np.ndarray:
        if self._here is not None:
            return self._weights.tensor(self._here, start, stop)
        layer, matrix = next((layer, matrix) for layer, part in enumerate(self._weights.parts)
                             for matrix, spec in (("gate", part.gate), ("up", part.up), ("down", part.down))
                             if spec is not None and spec.name == self._name)
        found: np.ndarray = getattr(self._weights.layer(layer), matrix)
        return found[start:stop]

    def grid(self, start: int, stop: int) -> Grid | None:
        return None
