"""How fast this machine computes a model: times its operations on weights of zero, before anything is loaded."""

import copy
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Self

import numpy as np

from edgert.bundle import Header
from edgert.bundle.header import HEAD, PREDICTORS, RESIDENT, NeuronLoss, down_headers, slabs
from edgert.engine.buffers import MOST_ROWS, Buffers
from edgert.engine.program_builder import Kind, ProgramBuilder
from edgert.engine.session import Session
from edgert.kernels.block_packing import made_up
from edgert.kernels.formats import FORMATS, SLAB, TILE
from edgert.kernels.groups import group_layout
from edgert.kernels.native import Library
from edgert.kernels.records import ABSENT
from edgert.kernels.team import Team
from edgert.models.families import FAMILIES
from edgert.residency.region import Region
from edgert.residency.source import Asking

MOST_TOKENS = 64
"""Computing more tokens at once takes no less time per token."""
_ENOUGH = 128 << 20
"""Bytes of weights: more than fits into caches."""
_LEAST_S, _LEAST_RUNS, _MOST_S = 0.15, 3, 0.8


class Rehearsal:
    """The first layers of a model and its output head, with weights that are all zero. A context manager.

    It has as many layers as make 128 MiB, or the whole model if that is smaller. So weights come from memory, or from a
    cache, as they would with the real model. All other layers take as long as these.
    """

    def __init__(self, header: Header, library: Library, *, threads: int, cache_type: str) -> None:
        config = header.config
        self._layers = config.num_hidden_layers
        weights = _MadeUpWeights(header)
        self._share = weights.layers / self._layers
        few = replace(config, num_hidden_layers=weights.layers)
        self._with_active = 1 + _active_share(header) if config.sparse else 1.0
        self._times: dict[int, tuple[float, float]] = {}
        self._draft_times: tuple[float, float] | None = None
        with ExitStack() as made:
            made.callback(weights.close)
            context = min(2 * MOST_TOKENS, config.max_position_embeddings)
            self._buffers = Buffers(few, header, MOST_TOKENS, threads, context, MOST_ROWS)
            made.callback(self._buffers.close)
            session = Session(few, context, cache_type)
            made.callback(session.close)
            self._room, self._session = context, session
            self._team = Team(library, threads)
            made.callback(self._team.close)
            self._weights = (weights, weights.draft(neurons=False), weights.draft(neurons=True))

            def build(kind: Kind, places: _MadeUpWeights) -> tuple[np.ndarray, np.ndarray]:
                network = ProgramBuilder(few, header, places, self._buffers, cache_type, kind)
                FAMILIES[config.architecture].wire(few, network)
                return network.body.array, network.head.array

            self._programs = [build(kind, weights) for kind in (Kind.MANY, Kind.ONE)]
            self._drafts = [build(Kind.DRAFT, places)[0] for places in self._weights[1:]]
            self._buffers.rows[:] = (weights.start, 0)
            self._buffers.selected[:] = 0
            self._team.set(selected_rows=self._buffers.selected_buffer.address,
                           token_records=self._buffers.tokens_buffer.address)
            self._closing = made.pop_all()

    def seconds(self, tokens: int) -> tuple[float, float]:
        """Seconds for this many tokens at once (at most MOST_TOKENS): all layers, and as many rows of the output head,
        at most MOST_ROWS."""
        if tokens not in self._times:
            self._set(tokens)
            body, head = self._programs[tokens == 1]
            self._times[tokens] = self._all_layers(body), _median(lambda: self._team.run(head))
        return self._times[tokens]

    @property
    def draft_seconds(self) -> tuple[float, float]:
        """Seconds of all layers for a token of a draft: without neurons, and with the base planes of all."""
        if self._draft_times is None:
            self._set(1)
            without, bases = (self._all_layers(body) for body in self._drafts)
            self._draft_times = without, bases
        return self._draft_times

    def _set(self, tokens: int) -> None:
        tokens = min(tokens, self._room)
        new = self._session.records(self._room)[-tokens:]
        self._buffers.tokens[:tokens, :new.shape[1]] = new
        self._team.set(tokens=tokens, selected=min(tokens, MOST_ROWS))

    def _all_layers(self, body: np.ndarray) -> float:
        return _median(lambda: self._team.run(body)) / self._share * self._with_active

    def close(self) -> None:
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _MadeUpWeights:
    """Takes the place of Weights when a program is built: zeros, laid out as the first layers are.

    The output head's slabs lie behind the layers; if there is no more room, they overlap them.
    """

    def __init__(self, header: Header) -> None:
        self._header = header
        dense = header.config.dense_layers
        resident = [0] * (dense + len(header.neurons))
        layers_of = {spec.name: spec.layer for spec in header.config.tensors()}
        layers_of |= {down_headers(layer): layer for layer in range(len(header.neurons))}
        for name, tensor in header.tensors.items():
            if tensor.section == RESIDENT and (layer := layers_of[name]) is not None:
                resident[layer] = max(resident[layer], tensor.offset + tensor.length)
        self._places: dict[str, int] = {}
        self._matrices: list[np.ndarray] = []
        self._details: np.ndarray | None = None
        neurons, self.layers, self._resident = 0, dense, 0
        config = header.config
        lengths = {n.section: n.group_bytes if config.selective else group_layout(
            config.hidden_size, FORMATS[n.gate_up], FORMATS[n.down], gated=config.gated).whole.length
            for n in header.neurons}
        # Of experts there are as many as a token has, each in several places: among zeros the first are chosen.
        standing = {n.section: n.groups if not config.experts
                    else config.experts_per_token * n.expert_units(config).per_expert for n in header.neurons}
        if not header.neurons:
            self.layers = next((n for n, end in enumerate(resident, 1) if end >= _ENOUGH), dense)
            self._resident = max(resident[:self.layers])
        for n in header.neurons:
            self._places[n.section] = neurons
            neurons += standing[n.section] * lengths[n.section]
            self.layers += 1
            self._resident = max(resident[:self.layers])
            if self._resident + neurons >= _ENOUGH:
                break
        layers = -(-self._resident // 64) * 64 + neurons
        head = next(t for t in header.tensors.values() if t.section == HEAD)
        slab = SLAB * FORMATS[head.format].tile_bytes(head.columns)
        size = max(layers + min(head.length, max(_ENOUGH - layers, 0)), slab)
        predictors = max((t.length for t in header.tensors.values() if t.section == PREDICTORS), default=0)
        self._region = Region(size + slab + predictors, "measuring", huge=True)
        self.start = self._region.address
        self._of_predictors = self.start + (size + slab) // 64 * 64
        """Where all of them stand, one upon another: they are small."""
        np.frombuffer(self._region.view(), np.uint8)[:] = 0  # memory that was never written to is not resident
        self._tables = {n.section: self.start + layers - neurons + self._places[n.section]
                        + lengths[n.section] * (np.arange(n.groups, dtype=np.int64) % standing[n.section])
                        for n in header.neurons[:max(self.layers - dense, 0)]}
        at = layers + slab * np.arange(slabs(head.rows), dtype=np.int64)
        self._tables[HEAD] = self.start + at % size // 64 * 64
        self._fill_sized(self._tables[HEAD][at < size] - self.start)

    def _fill_sized(self, head: np.ndarray) -> None:
        """Where a format leaves out what is zero, put weights that are not left out. head: where slabs of the output
        head are that lie behind the layers."""
        config, view = self._header.config, np.frombuffer(self._region.view(), np.uint8)
        for tensor in self._header.tensors.values():
            if tensor.format not in FORMATS or not FORMATS[tensor.format].room or tensor.section == PREDICTORS:
                continue
            tile = made_up(FORMATS[tensor.format], FORMATS[tensor.format].blocks(tensor.columns))
            if tensor.section == HEAD:
                for at in head:
                    view[at:at + SLAB * len(tile)] = np.tile(tile, SLAB)
            elif tensor.offset + tensor.length <= self._resident:
                view[tensor.offset:tensor.offset + tensor.length] = np.tile(tile, -(-tensor.rows // TILE))
        for n in [] if config.selective else self._header.neurons[:self.layers]:
            gate_up, down, down_tiles = FORMATS[n.gate_up], FORMATS[n.down], -(-config.hidden_size // TILE)
            layout = group_layout(config.hidden_size, gate_up, down, gated=config.gated).whole
            for at in self._tables[n.section] - self.start:
                if gate_up.room:
                    tile = made_up(gate_up, gate_up.blocks(config.hidden_size))
                    view[at:at + layout.down] = np.tile(tile, layout.down // gate_up.room)
                if down.room:
                    view[at + layout.down:at + layout.down + down.room] = made_up(down, down_tiles, down_tiles)

    def address(self, name: str) -> int:
        tensor = self._header.tensors[name]
        if tensor.section == PREDICTORS:
            return self._of_predictors
        return self.start + (tensor.offset if tensor.offset + tensor.length <= self._resident else 0)

    def matrix(self, name: str) -> tuple[int, int]:
        tensor = self._header.tensors[name]
        if tensor.section == HEAD:
            return self.table(HEAD)
        addresses = self.address(name) + SLAB * FORMATS[tensor.format].tile_bytes(tensor.columns) * np.arange(
            slabs(tensor.rows), dtype=np.int64)
        self._matrices.append(addresses)
        return addresses.ctypes.data, 0

    def table(self, section: str) -> tuple[int, int]:
        return self._tables[section].ctypes.data, 0

    def details(self, name: str | None) -> tuple[int, int]:
        return 0 if name is None or self._details is None else self._details.ctypes.data, 0

    def asking(self, name: str) -> Asking:
        return Asking()

    def head_tiles(self, rows: int) -> int:
        return -(-rows // TILE)

    def draft(self, *, neurons: bool) -> "_MadeUpWeights":
        """The same as a draft meets them: of neurons their base planes, or nothing; experts as they are."""
        if self._header.config.experts:
            return self
        other = copy.copy(self)
        other._tables = dict(self._tables)
        for n in self._header.neurons[:self.layers]:
            bases = self._tables[n.section][0] + n.group_bytes * np.arange(n.groups, dtype=np.int64)
            other._tables[n.section] = bases if neurons else np.full(n.groups, ABSENT, np.int64)
        other._details = np.full(max((n.groups for n in self._header.neurons), default=0), ABSENT, np.int64)
        return other

    def close(self) -> None:
        self._region.close()


def _active_share(header: Header) -> float:
    """Of a sparse model: bytes of the neurons that a token needs, in parts of those that every token does. Among zeros
    no neuron is active, so what these take is estimated so."""
    active, every = 0.0, header.sections[RESIDENT].length - sum(of.length for of in header.unused().values())
    for n, of in zip(header.neurons, header.activity, strict=True):
        share = header.left_out.computed if isinstance(header.left_out, NeuronLoss) else of[0] / 10000
        active += share * n.groups * n.group_bytes
    return active / (every + (header.sections[PREDICTORS].length if header.predicts else 0))


def _median(run: Callable[[], object]) -> float:
    """The median time of a call, in seconds."""
    run()
    times: list[float] = []
    while sum(times) < (_LEAST_S if len(times) >= _LEAST_RUNS else _MOST_S):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
