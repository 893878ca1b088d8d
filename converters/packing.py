"""A source's tensors as the bytes that a bundle has of them, in memory bounded by a part of a tensor.

All but a layer's down projection: it comes by rows and goes by columns, and is held whole; packed, or in sparse models
as float32.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from edgert.bundle import Header
from edgert.bundle.header import PREDICTORS, predictor
from edgert.errors import SourceError
from edgert.kernels.block_packing import groups_of_size
from edgert.kernels.formats import BLOCK, BLOCK_SPARSE, FORMATS, SLAB, TILE, Format, planes
from edgert.models.tensors import FeedForward, TensorSpec

from .importance import Importance
from .ordering import NeuronOrder
from .predictor import Predictor
from .quantizer import LARGEST, on_grid, packed, packed_rows
from .source import Grid, Source

_VALUES_AT_ONCE = 16 << 20
"""Weights converted at a time: 64 MB as float32."""


class Packing:
    """The tensors of a source, packed as `header` says.

    importance_of(name) gives what is known of a matrix's columns, and is asked once for each, in the order of use.
    All methods raise SourceError.
    """

    def __init__(self, source: Source, header: Header, importance_of: Callable[[str], Importance | None]) -> None:
        self._tensors, self._header, self._importance_of = dict(source.tensors), header, importance_of

    def reorder(self, part: FeedForward, order: NeuronOrder) -> None:
        """Have the neurons of a layer in this order from now on."""
        self._tensors |= order.applied(part, self._tensors)

    def vector(self, spec: TensorSpec) -> np.ndarray:
        """A vector as float32, padded with zeros to whole blocks."""
        length = spec.shape[0]
        return np.pad(self._tensors[spec.name].read(0, length), (0, -length % BLOCK)).astype(np.float32)

    def matrix(self, spec: TensorSpec) -> Iterator[np.ndarray]:
        """A matrix that is not in neuron groups: uint8 of shape (tiles, tile_bytes), some whole slabs at a time."""
        importance, form = self._importance_of(spec.name), FORMATS[self._header.tensors[spec.name].format]
        rows, columns = spec.shape
        step = max(_VALUES_AT_ONCE // columns // (SLAB * TILE), 1) * SLAB * TILE
        for start in range(0, rows, step):
            yield self._tiles(spec, form, importance, start, min(start + step, rows))

    def neurons(self, layer: int, part: FeedForward) -> tuple[np.ndarray, Iterator[list[np.ndarray]]]:
        """The tile headers of a layer's down projection, uint8 of shape (tiles, header_bytes); and the layer's neuron
        groups, some at a time: what they have in each of their sections, uint8 of shape (groups, bytes)."""
        *of_rows, of_down = [self._importance_of(spec.name) for spec in part.matrices]
        form = FORMATS[self._header.neurons[layer].down]
        if form.room:
            form = BLOCK_SPARSE
        rows, columns = part.down.shape
        step = max(_VALUES_AT_ONCE // columns // TILE, 1) * TILE
        tiles = np.empty((-(-rows // TILE), form.tile_bytes(columns)), np.uint8)
        for start in range(0, rows, step):
            some = self._tiles(part.down, form, of_down, start, min(start + step, rows))
            tiles[start // TILE:start // TILE + len(some)] = some
        return tiles[:, :form.header_bytes], self._groups(layer, part, of_rows, tiles[:, form.header_bytes:])

    def units(self, layer: int, part: FeedForward) -> Iterator[tuple[str, np.ndarray]]:
        """A sparse layer's neurons, some units at a time: of which section, and uint8 of shape (units, bytes). Where
        there are predictors, all once more as these choose them."""
        config, exact = self._header.config, self._header.neurons[layer]
        importances = [self._importance_of(spec.name) for spec in part.in_groups]
        down = self._read(part.down, 0, part.down.shape[0], exact.down).T
        kinds = [(exact, list(zip(part.in_groups, importances, strict=True)))]
        if PREDICTORS in self._header.sections:
            assert part.deciding is not None
            kinds.append((exact.predicted(config, layer), [(part.deciding, None), *kinds[0][1]]))
        for n, by_rows in kinds:
            units = n.units(config)
            at_once = max(_VALUES_AT_ONCE // (2 * config.hidden_size) // units.neurons, 1) * units.neurons
            for first in range(0, config.intermediate_size, at_once):
                some = slice(first, min(first + at_once, config.intermediate_size))
                rows = [packed_rows(n.gate_up, self._read(spec, some.start, some.stop, n.gate_up), importance)
                        for spec, importance in by_rows]
                neurons = np.concatenate([*rows, packed_rows(n.down, np.ascontiguousarray(down[some]))], 1)
                filled = np.pad(neurons, ((0, -len(neurons) % units.neurons), (0, 0))).reshape(-1, units.neurons
                                                                                               * units.neuron_bytes)
                yield n.section, np.pad(filled, ((0, 0), (0, units.unit_bytes - filled.shape[1])))

    def predictor(self, layer: int, fitted: Predictor, order: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """A sparse layer's predictor, its neurons in this order: the tensors' names, and their bytes."""
        into, out = predictor(layer)
        for name, values in ((into, fitted.into), (out, fitted.out[order])):
            tensor = f"{name}.weight"
            yield tensor, packed(FORMATS[self._header.tensors[tensor].format], values)
        yield f"{out}.bias", np.pad(fitted.bias[order], (0, -len(order) % BLOCK)).astype(np.float32)

    def experts(self, layer: int, part: FeedForward) -> Iterator[np.ndarray]:
        """A layer's experts one after another, the units of each: uint8 of shape (units, bytes)."""
        config, n = self._header.config, self._header.neurons[layer]
        units, hidden_size, neurons = n.expert_units(config), config.hidden_size, config.intermediate_size
        form = FORMATS[n.down]
        for expert in range(config.experts):
            found, first = np.zeros((units.per_expert, units.unit_bytes), np.uint8), expert * neurons
            down = self._read(part.down, expert * hidden_size, (expert + 1) * hidden_size, n.down)
            tensor = self._tensors[part.down.name]
            grid = (tensor.grid(expert * hidden_size, (expert + 1) * hidden_size) if on_grid(tensor, n.down) else None)
            for unit, filled in enumerate(found):
                groups, start = units.groups_of(unit), unit * units.in_unit * BLOCK
                some = slice(start, min(start + groups * BLOCK, neurons))
                parts = []
                for spec in part.by_rows:
                    tiles = self._tiles(spec, FORMATS[n.gate_up], None, first + some.start, first + some.stop)
                    parts.append(np.pad(tiles, ((0, groups * BLOCK // TILE - len(tiles)), (0, 0))))
                blocks = slice(some.start // BLOCK, -(-some.stop // BLOCK))
                on = grid and Grid(grid.scale[:, blocks], grid.minimum[:, blocks], grid.top)
                of_down = packed(form, down[:, some], on)
                headers, body = of_down[:, :form.header_bytes], of_down[:, form.header_bytes:]
                parts.append(body.reshape(len(body), groups, -1).transpose(1, 0, 2))
                whole = _side_by_side(parts, groups, units.group_bytes)
                filled[:whole.size] = whole.reshape(-1)
                filled[units.headers:units.headers + headers.size] = headers.reshape(-1)
            yield found

    def _groups(self, layer: int, part: FeedForward, importances: list[Importance | None],
                down: np.ndarray) -> Iterator[list[np.ndarray]]:
        """importances: of the matrices by rows. down: the blocks of the down projection's tiles, uint8 of shape (tiles,
        bytes)."""
        neurons = self._header.neurons[layer]
        # (tile, group, block bytes): group g of the down projection is block g of every tile.
        blocks = down.reshape(len(down), neurons.groups, -1)
        rows, columns = part.up.shape
        at_once = max(_VALUES_AT_ONCE // (2 * columns) // BLOCK, 1)
        for first in range(0, neurons.groups, at_once):
            last = min(first + at_once, neurons.groups)
            parts = []
            for spec, importance in zip(part.by_rows, importances, strict=True):
                two = self._tiles(spec, FORMATS[neurons.gate_up], importance, first * BLOCK, min(last * BLOCK, rows))
                missing = 2 * (last - first) - len(two)
                parts.append(_tile_planes(FORMATS[neurons.gate_up], np.pad(two, ((0, missing), (0, 0)))))
            form, some = FORMATS[neurons.down], blocks[:, first:last].transpose(1, 0, 2)
            parts.append(_block_planes(form, groups_of_size(form, some) if form.room else some))
            yield [_side_by_side(plane, last - first, size)
                   for plane, (_, size) in zip(zip(*parts, strict=True), neurons.parts(), strict=False)]

    def _tiles(self, spec: TensorSpec, form: Format, importance: Importance | None, start: int,
               stop: int) -> np.ndarray:
        """Rows start to stop of a matrix, uint8 of shape (tiles, tile_bytes)."""
        tensor = self._tensors[spec.name]
        grid = tensor.grid(start, stop) if on_grid(tensor, form.name) else None
        return packed(form, self._read(spec, start, stop, form.kind), grid, importance)

    def _read(self, spec: TensorSpec, start: int, stop: int, form: str) -> np.ndarray:
        """Rows start to stop of a matrix as float32, which a format can hold. Raises SourceError where it cannot."""
        values = self._tensors[spec.name].read(start, stop)
        if (largest := np.abs(values).max()) > LARGEST[form]:
            raise SourceError(f"a weight of ±{largest:.3g} is more than preset {self._header.quantization['preset']} "
                              "can hold; the file is damaged, or takes another preset")
        return values


def _block_planes(form: Format, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The base and the detail planes of blocks; of a format that is not split, the blocks and nothing."""
    return planes(form, blocks) if form.detail_bytes else (blocks, blocks[..., :0])


def _tile_planes(form: Format, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tiles with base planes for blocks, and the detail planes of their blocks: both uint8 of shape (tiles, bytes)."""
    if form.room:
        return tiles, tiles[:, :0]
    body = tiles[:, form.header_bytes:].reshape(len(tiles), -1, form.block_bytes)
    base, detail = (plane.reshape(len(tiles), -1) for plane in _block_planes(form, body))
    return np.concatenate([tiles[:, :form.header_bytes], base], 1), detail


def _side_by_side(parts: Sequence[np.ndarray], groups: int, size: int) -> np.ndarray:
    """Each group's share of all parts, padded with zeros: uint8 of shape (groups, size)."""
    filled = np.zeros((groups, size), np.uint8)
    at = 0
    for part in (part.reshape(groups, -1) for part in parts):
        filled[:, at:at + part.shape[1]] = part
        at += part.shape[1]
    return filled
