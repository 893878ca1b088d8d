"""Converting: a source becomes a bundle, tensor by tensor, in memory bounded by the largest part of one tensor."""

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash

import edgert
from edgert.bundle import BundleWriter, Header
from edgert.bundle.contents import Kind, contents
from edgert.bundle.header import CHAT_TEMPLATE, GROUP_CHECKSUMS, TOKENIZER, down_headers
from edgert.errors import SourceError
from edgert.kernels.formats import BLOCK, FORMATS, SLAB, TILE
from edgert.models.tensors import FEED_FORWARD, Role, TensorSpec, feed_forward_parts

from .calibration import Calibration, calibration_windows
from .destination import destination, require_apart
from .importance import Importance
from .interruption import cleaned_up
from .layout import lay_out
from .open_source import open_source
from .presets import DEFAULT, Preset, preset
from .quantizer import LARGEST, packed
from .source import Source, SourceTensor

_VALUES_AT_ONCE = 16 << 20
"""Weights converted at a time: 64 MB as float32."""

Progress = Callable[[str, int, int], None]


def convert(source: str, out: str | os.PathLike[str], preset_name: str = DEFAULT,
            progress: Progress = lambda what, done, total: None, *, calibrate: bool = True) -> list[Kind]:
    """Convert a GGUF file, a safetensors folder or `hf:org/name[@rev]` to a bundle at `out`.

    calibrate: where weights are rounded to 4 bits that were not before, run some text through the model and round them
    so that it changes least (calibration.py). progress(what, weights done, weights in all) is called after each part.
    What the bundle is made of comes back. Where `out` is a link, what it points to is written.

    Raises SourceError, DownloadError or BundleError, and, in the main thread, SystemExit after a SIGTERM or SIGHUP that
    would have ended the program (interruption.py); then there is no bundle at `out`, or still the one of before.
    """
    chosen = preset(preset_name)
    path = destination(Path(out))
    require_apart(path, [Path(source)])  # before all of it is read for its hash
    opened = open_source(source)
    require_apart(path, [file.path for file in opened.files])
    provenance = {**opened.provenance, "edgert": edgert.__version__, "preset": preset_name}
    header = lay_out(opened, chosen, provenance)
    with cleaned_up(), BundleWriter(path, header) as writer:
        _Conversion(opened, chosen, header, writer, progress, calibrate).run()
        for file in opened.files:
            file.require_unchanged()
        writer.commit()
    return contents(header)


class _Conversion:
    def __init__(self, source: Source, chosen: Preset, header: Header, writer: BundleWriter,
                 progress: Progress, calibrate: bool) -> None:
        self._source, self._preset, self._header, self._writer = source, chosen, header, writer
        self._progress = progress
        self._done = 0
        self._tensors = list(source.config.tensors())
        self._feed_forward = feed_forward_parts(self._tensors)
        self._total = sum(int(np.prod(spec.shape)) for spec in self._tensors)
        self._ends: dict[str, int] = defaultdict(int)
        self._rounded = self._newly_rounded() if calibrate else set()
        windows = calibration_windows(source) if self._rounded else None
        self._calibration = None if windows is None else Calibration(
            source, windows, self._rounded, lambda weights: self._report("calibrating", weights))
        self._importance_of: tuple[np.ndarray, Importance] | None = None
        if self._calibration is not None:
            self._total += self._calibration.weights

    def run(self) -> None:
        self._writer.write(TOKENIZER, self._source.tokenizer_json.encode())
        if self._source.chat_template is not None:
            self._writer.write(CHAT_TEMPLATE, self._source.chat_template.encode())
        groups: list[int] = []
        slabs: dict[str, list[int]] = {}
        for spec in self._tensors:
            if not spec.is_matrix:
                values = self._source.tensors[spec.name].read(0, spec.shape[0])
                self._write(spec.name, np.pad(values, (0, -spec.shape[0] % BLOCK)).astype(np.float32))
            elif spec.role not in FEED_FORWARD:
                slabs[self._header.tensors[spec.name].section] = self._write_matrix(spec.name)
            elif spec.role is Role.DOWN:
                assert spec.layer is not None
                groups += self._write_neurons(spec.layer)
            else:
                continue  # gate and up go with down
            self._report(spec.name, int(np.prod(spec.shape)) * (3 if spec.role is Role.DOWN else 1))
        for section in self._header.matrices_in_slabs():
            groups += slabs[section]
        self._writer.write(GROUP_CHECKSUMS, np.array(groups, dtype="<u8"))

    def _newly_rounded(self) -> set[str]:
        """The matrices that become 4 bits and do not stand on a grid of 4 bits yet."""
        return {spec.name for spec in self._tensors if spec.is_matrix and self._format(spec) == "q4"
                and self._source.tensors[spec.name].grid(0, 0) is None}

    def _format(self, matrix: TensorSpec) -> str:
        """The format of a matrix in the bundle."""
        if matrix.role not in FEED_FORWARD:
            return self._header.tensors[matrix.name].format
        assert matrix.layer is not None
        neurons = self._header.neurons[matrix.layer]
        return neurons.down if matrix.role is Role.DOWN else neurons.gate_up

    def _importance(self, name: str) -> Importance | None:
        if self._calibration is None or name not in self._rounded:
            return None
        moments = self._calibration.moments(name)
        if self._importance_of is None or self._importance_of[0] is not moments:  # q, k and v have the same inputs
            self._importance_of = moments, Importance(moments)
        return self._importance_of[1] if self._importance_of[1].usable else None

    def _report(self, name: str, weights: int) -> None:
        self._done += weights
        self._progress(name, self._done, self._total)

    def _write(self, name: str, data: np.ndarray, *, more: bool = False) -> None:
        tensor = self._header.tensors[name]
        if not more and self._ends[tensor.section] < tensor.offset:
            self._writer.write(tensor.section, bytes(tensor.offset - self._ends[tensor.section]))
            self._ends[tensor.section] = tensor.offset
        self._writer.write(tensor.section, np.ascontiguousarray(data))
        self._ends[tensor.section] += data.nbytes

    def _tiles(self, tensor: SourceTensor, form: str, importance: Importance | None, start: int,
               stop: int) -> np.ndarray:
        grid, values = tensor.grid(start, stop) if form == "q4" else None, tensor.read(start, stop)
        if (largest := np.abs(values).max()) > LARGEST[form]:
            raise SourceError(f"a weight of ±{largest:.3g} is more than preset {self._preset.name} can hold; "
                              "the file is damaged, or takes another preset")
        return packed(FORMATS[form], values, grid, importance)

    def _write_matrix(self, name: str) -> list[int]:
        """A matrix that is not in neuron groups; its slabs' checksums come back."""
        tensor, form = self._source.tensors[name], self._header.tensors[name].format
        importance, (rows, columns) = self._importance(name), tensor.shape
        step = max(_VALUES_AT_ONCE // columns // (SLAB * TILE), 1) * SLAB * TILE
        checksums = []
        for start in range(0, rows, step):
            tiles = self._tiles(tensor, form, importance, start, min(start + step, rows))
            self._write(name, tiles, more=start > 0)
            checksums += [xxhash.xxh3_64_intdigest(tiles[i:i + SLAB].tobytes())
                          for i in range(0, len(tiles), SLAB)]
        return checksums

    def _write_neurons(self, layer: int) -> list[int]:
        """A layer's groups; their checksums come back."""
        neurons = self._header.neurons[layer]
        names = [spec.name for spec in self._feed_forward[layer]]
        gate, up, down = (self._source.tensors[name] for name in names)
        of_gate, of_up, of_down = (self._importance(name) for name in names)
        form = FORMATS[neurons.down]
        rows, columns = down.shape
        step = max(_VALUES_AT_ONCE // columns // TILE, 1) * TILE
        tiles = np.empty((-(-rows // TILE), form.tile_bytes(columns)), np.uint8)
        for start in range(0, rows, step):
            part = self._tiles(down, neurons.down, of_down, start, min(start + step, rows))
            tiles[start // TILE:start // TILE + len(part)] = part
        if form.header_bytes:
            self._write(down_headers(layer), tiles[:, :form.header_bytes])
        # (tile, group, block bytes): group g of the down projection is block g of every tile.
        blocks = tiles[:, form.header_bytes:].reshape(len(tiles), neurons.groups, form.block_bytes)
        checksums = []
        at_once = max(_VALUES_AT_ONCE // (2 * gate.shape[1]) // BLOCK, 1)
        for first in range(0, neurons.groups, at_once):
            last = min(first + at_once, neurons.groups)
            parts = []
            for tensor, importance in ((gate, of_gate), (up, of_up)):
                two = self._tiles(tensor, neurons.gate_up, importance, first * BLOCK,
                                  min(last * BLOCK, tensor.shape[0]))
                missing = 2 * (last - first) - len(two)
                parts.append(np.pad(two, ((0, missing), (0, 0))).reshape(last - first, -1))
            parts.append(blocks[:, first:last].transpose(1, 0, 2).reshape(last - first, -1))
            padding = neurons.group_bytes - sum(p.shape[1] for p in parts)
            groups = np.concatenate([*parts, np.zeros((last - first, padding), np.uint8)], 1)
            checksums += [xxhash.xxh3_64_intdigest(group) for group in groups]
            self._writer.write(neurons.section, groups)
        return checksums
