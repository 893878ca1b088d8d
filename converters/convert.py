"""Converting: a source becomes a bundle, tensor by tensor, in memory bounded by the largest part of one tensor."""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash

import edgert
from edgert.bundle import BundleWriter, Header
from edgert.bundle.contents import Kind, contents
from edgert.bundle.header import CHAT_TEMPLATE, GROUP_CHECKSUMS, TOKENIZER, down_headers
from edgert.kernels.formats import SLAB
from edgert.models.tensors import FeedForward, Role, TensorSpec, feed_forward_parts

from .destination import destination, require_apart
from .interruption import cleaned_up
from .layout import lay_out
from .open_source import open_source
from .packing import Packing
from .presets import DEFAULT, preset
from .rounding import Importances, newly_rounded
from .source import Source

Progress = Callable[[str, int, int], None]


def convert(source: str, out: str | os.PathLike[str], preset_name: str = DEFAULT,
            progress: Progress = lambda what, done, total: None, *, calibrate: bool = True,
            texts: Sequence[str | os.PathLike[str]] = ()) -> list[Kind]:
    """Convert a GGUF file, a safetensors folder or `hf:org/name[@rev]` to a bundle at `out`.

    calibrate: where weights are rounded to 4 bits that were not before, run some text through the model and round them
    so that it changes least (calibration.py). texts: files to calibrate with; without them it is a text that comes with
    edgert. progress(what, weights done, weights in all) is called after each part. What the bundle is made of comes
    back. Where `out` is a link, what it points to is written.

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
    paths = [Path(text) for text in texts] if calibrate else []
    if paths and (newly_rounded(opened, header) or opened.config.selective):
        header.provenance["calibration"] = ", ".join(path.name for path in paths)
    with cleaned_up(), BundleWriter(path, header) as writer:
        _Conversion(opened, header, writer, progress, calibrate, paths).run()
        for file in opened.files:
            file.require_unchanged()
        writer.commit()
    return contents(header)


class _Conversion:
    """All that goes into a bundle, written section by section and reported part by part."""

    def __init__(self, source: Source, header: Header, writer: BundleWriter, progress: Progress,
                 calibrate: bool, texts: Sequence[Path]) -> None:
        self._source, self._header, self._writer, self._progress = source, header, writer, progress
        self._tensors = list(source.config.tensors())
        self._importances = (Importances(source, header, texts, lambda n: self._report("calibrating", n)) if calibrate
                             else None)
        self._packing = Packing(source, header, self._importances.of if self._importances else lambda name: None)
        self._done = 0
        self._total = sum(map(_weights, self._tensors)) + (self._importances.weights if self._importances else 0)
        self._ends: dict[str, int] = defaultdict(int)

    def run(self) -> None:
        """Write everything. Raises SourceError or BundleError."""
        self._writer.write(TOKENIZER, self._source.tokenizer_json.encode())
        if self._source.chat_template is not None:
            self._writer.write(CHAT_TEMPLATE, self._source.chat_template.encode())
        groups: list[int] = []
        slabs: dict[str, list[int]] = {}
        parts = feed_forward_parts(self._tensors, sparse=self._header.config.sparse)
        deciding = {part.deciding: layer for layer, part in enumerate(parts)}
        feed_forward = enumerate(parts)
        for spec in self._tensors:
            if spec in deciding:
                self._order(deciding[spec], parts[deciding[spec]])
            written: Sequence[TensorSpec] = [spec]
            if not spec.is_matrix:
                self._write(spec.name, self._packing.vector(spec))
            elif spec.role not in self._header.config.in_groups:
                slabs[self._header.tensors[spec.name].section] = self._write_matrix(spec)
            elif spec.role is Role.DOWN:
                layer, part = next(feed_forward)
                written = [*part.in_groups, part.down]
                groups += self._write_neurons(layer, part)
            else:
                continue  # gate and up go with down
            self._report(spec.name, sum(map(_weights, written)))
        for section in self._header.matrices_in_slabs():
            groups += slabs[section]
        self._writer.write(GROUP_CHECKSUMS, np.array(groups, dtype="<u8"))

    def _order(self, layer: int, part: FeedForward) -> None:
        """Put the neurons of a sparse layer in order, if anything is known of them."""
        order = self._importances.order(layer) if self._importances else None
        if order is not None:
            self._packing.reorder(part, order)
            self._header.activity[layer] = np.round(10000 * order.misses).astype(int).tolist()

    def _write_matrix(self, spec: TensorSpec) -> list[int]:
        """A matrix that is not in neuron groups; its slabs' checksums come back."""
        checksums = []
        for number, tiles in enumerate(self._packing.matrix(spec)):
            self._write(spec.name, tiles, more=number > 0)
            checksums += [xxhash.xxh3_64_intdigest(tiles[i:i + SLAB].tobytes()) for i in range(0, len(tiles), SLAB)]
        return checksums

    def _write_neurons(self, layer: int, part: FeedForward) -> list[int]:
        """A layer's groups; their checksums come back, then those of their details."""
        if self._header.config.sparse:
            return self._write_units(layer, self._packing.units(layer, part))
        if self._header.config.experts:
            self._note_misses(layer)
            return self._write_units(layer, self._packing.experts(layer, part))
        headers, groups = self._packing.neurons(layer, part)
        if headers.size:
            self._write(down_headers(layer), headers)
        checksums: dict[str, list[int]] = {section: [] for section, _ in self._header.neurons[layer].parts()}
        for some in groups:
            for section, planes in zip(checksums, some, strict=True):
                checksums[section] += [xxhash.xxh3_64_intdigest(plane) for plane in planes]
                self._writer.write(section, planes)
        return [checksum for of_section in checksums.values() for checksum in of_section]

    def _note_misses(self, layer: int) -> None:
        """Keep what is known of which experts tokens need."""
        misses = self._importances.misses(layer) if self._importances else None
        if misses is not None:
            self._header.activity[layer] = np.round(10000 * misses).astype(int).tolist()

    def _write_units(self, layer: int, every: Iterable[np.ndarray]) -> list[int]:
        """The units of a sparse layer, or of experts, some at a time; their checksums come back."""
        checksums = []
        for units in every:
            checksums += [xxhash.xxh3_64_intdigest(unit) for unit in units]
            self._writer.write(self._header.neurons[layer].section, units)
        return checksums

    def _write(self, name: str, data: np.ndarray, *, more: bool = False) -> None:
        """A tensor, or more of it, at its place in its section."""
        tensor = self._header.tensors[name]
        if not more and self._ends[tensor.section] < tensor.offset:
            self._writer.write(tensor.section, bytes(tensor.offset - self._ends[tensor.section]))
            self._ends[tensor.section] = tensor.offset
        self._writer.write(tensor.section, np.ascontiguousarray(data))
        self._ends[tensor.section] += data.nbytes

    def _report(self, what: str, weights: int) -> None:
        self._done += weights
        self._progress(what, self._done, self._total)


def _weights(spec: TensorSpec) -> int:
    return math.prod(spec.shape)
