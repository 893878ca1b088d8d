"""Converting: a source becomes a bundle, tensor by tensor, in memory bounded by the largest part of one tensor."""

import hashlib
import math
import os
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import xxhash

import edgert
from edgert.bundle import BundleWriter, Header
from edgert.bundle.contents import Kind, contents
from edgert.bundle.header import CHAT_TEMPLATE, GROUP_CHECKSUMS, TOKENIZER, down_headers
from edgert.bundle.journal import Entry
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

KEEP_S = 10
"""Seconds after which what is done is kept again."""
_GROUPS = "groups"
"""What is kept under that name: the checksums of the neuron groups."""


def convert(source: str, out: str | os.PathLike[str], preset_name: str = DEFAULT,
            progress: Progress = lambda what, done, total: None, *, calibrate: bool = True,
            texts: Sequence[str | os.PathLike[str]] = (),
            say: Callable[[str], object] = lambda sentence: None) -> list[Kind]:
    """Convert a GGUF file, a safetensors folder or `hf:org/name[@rev]` to a bundle at `out`.

    calibrate: where weights are rounded to 4 bits that were not before, run some text through the model and round them
    so that it changes least (calibration.py). texts: files to calibrate with; without them it is a text that comes with
    edgert. progress(what, weights done, weights in all) is called after each part. What the bundle is made of comes
    back. Where `out` is a link, what it points to is written.

    A conversion that takes longer keeps every few seconds what it has done, beside `out`. Interrupted, the next of the
    same files with the same options goes on from there, and say(sentence) is called with that. The bundle is the same.

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
    if paths and (newly_rounded(opened, header) or opened.config.sparse):
        header.provenance["calibration"] = ", ".join(path.name for path in paths)
    with cleaned_up(), BundleWriter(path, header, _key(header, calibrate, paths)) as writer:
        conversion = _Conversion(opened, header, writer, progress, calibrate, paths)
        if writer.kept is not None:
            conversion.go_on(writer.kept)
            say(f"{out}: going on with what an interrupted conversion has left: {conversion.share:.0%} is done")
        conversion.run()
        for file in opened.files:
            file.require_unchanged()
        writer.commit()
    return contents(header)


def _key(header: Header, calibrate: bool, texts: Sequence[Path]) -> str:
    """What a bundle's bytes depend on: the source's hashes, edgert's version and the preset, which are in the header,
    and how it is calibrated."""
    digest = hashlib.sha256(header.to_json())
    digest.update(bytes([calibrate]))
    for text in filter(Path.is_file, texts):  # whoever reads it says what is wrong with another
        with suppress(OSError), text.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


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
        self._tensors_done = 0
        self._groups = array("Q")
        self._slabs: dict[str, array[int]] = {}
        self._kept_at = time.monotonic()

    @property
    def share(self) -> float:
        """How much is done."""
        return self._done / self._total

    def go_on(self, entry: Entry) -> None:
        """Be where an earlier conversion was when it kept this."""
        state, arrays = entry.state, dict(entry.arrays)
        self._tensors_done, self._done = state["tensors"], state["weights"]
        self._ends |= state["ends"]
        if self._header.config.sparse:
            self._header.quantization["activity"] = state["activity"]
        self._groups = array("Q", arrays.pop(_GROUPS).tobytes())
        for section in state["slabs"]:
            self._slabs[section] = array("Q", arrays.pop(section).tobytes())
        if self._importances:
            self._importances.go_on(state["calibrated"], {int(number): values for number, values in arrays.items()})
        self._progress("going on", self._done, self._total)

    def _keep(self, spec: TensorSpec) -> None:
        """Keep what is done, if it is time, nothing is half done, and none of the layer's neurons are in an order that
        the rest of it needs."""
        if time.monotonic() < self._kept_at + KEEP_S or (spec.layer is not None and spec.role is not Role.DOWN):
            return
        calibrated = self._importances.state() if self._importances else (0, {})
        if calibrated is None:
            return
        arrays = {_GROUPS: np.array(self._groups), **{str(number): x for number, x in calibrated[1].items()},
                  **{section: np.array(checksums) for section, checksums in self._slabs.items()}}
        self._writer.keep({
            "tensors": self._tensors_done, "weights": self._done, "ends": self._ends, "slabs": list(self._slabs),
            "activity": self._header.quantization.get("activity"), "calibrated": calibrated[0]}, arrays)
        self._kept_at = time.monotonic()

    def run(self) -> None:
        """Write everything that is not yet written. Raises SourceError or BundleError."""
        if not self._tensors_done:
            self._writer.write(TOKENIZER, self._source.tokenizer_json.encode())
            if self._source.chat_template is not None:
                self._writer.write(CHAT_TEMPLATE, self._source.chat_template.encode())
        parts = feed_forward_parts(self._tensors, sparse=self._header.config.sparse)
        deciding = {part.deciding: layer for layer, part in enumerate(parts)}
        for spec in self._tensors[self._tensors_done:]:
            if spec in deciding:
                self._order(deciding[spec], parts[deciding[spec]])
            self._tensors_done += 1
            if not spec.is_matrix:
                self._write(spec.name, self._packing.vector(spec))
                self._report(spec.name, _weights(spec))
            elif spec.role not in self._header.config.in_groups:
                self._slabs[self._header.tensors[spec.name].section] = self._write_matrix(spec)
            elif spec.role is Role.DOWN:
                assert spec.layer is not None
                self._groups += self._write_neurons(spec.layer, parts[spec.layer])
            else:
                continue  # gate and up go with down
            self._keep(spec)
        for section in self._header.matrices_in_slabs():
            self._groups += self._slabs[section]
        self._writer.write(GROUP_CHECKSUMS, np.array(self._groups, dtype="<u8"))

    def _order(self, layer: int, part: FeedForward) -> None:
        """Put the neurons of a sparse layer in order, if anything is known of them."""
        order = self._importances.order(layer) if self._importances else None
        if order is not None:
            self._packing.reorder(part, order)
            self._header.activity[layer] = np.round(10000 * order.misses).astype(int).tolist()

    def _write_matrix(self, spec: TensorSpec) -> "array[int]":
        """A matrix that is not in neuron groups; its slabs' checksums come back."""
        checksums = array("Q")
        report = self._in_parts([spec], self._header.tensors[spec.name].length)
        for number, tiles in enumerate(self._packing.matrix(spec)):
            self._write(spec.name, tiles, more=number > 0)
            checksums.extend(xxhash.xxh3_64_intdigest(tiles[i:i + SLAB].tobytes()) for i in range(0, len(tiles), SLAB))
            report(tiles.nbytes)
        return checksums

    def _write_neurons(self, layer: int, part: FeedForward) -> "array[int]":
        """A layer's groups, or units; their checksums come back, then those of their details."""
        neurons = self._header.neurons[layer]
        checksums = {section: array("Q") for section, _ in neurons.parts()}
        report = self._in_parts([*part.in_groups, part.down], neurons.groups)
        for some in self._units(layer, part):
            for section, planes in zip(checksums, some, strict=True):
                checksums[section].extend(map(xxhash.xxh3_64_intdigest, planes))
                self._writer.write(section, planes)
            report(len(some[0]))
        return sum(checksums.values(), array("Q"))

    def _units(self, layer: int, part: FeedForward) -> Iterator[Sequence[np.ndarray]]:
        """A layer's groups, or units, some at a time, as `Packing.neurons` has them."""
        if self._header.config.sparse:
            return ([units] for units in self._packing.units(layer, part))
        headers, groups = self._packing.neurons(layer, part)
        if headers.size:
            self._write(down_headers(layer), headers)
        return groups

    def _write(self, name: str, data: np.ndarray, *, more: bool = False) -> None:
        """A tensor, or more of it, at its place in its section."""
        tensor = self._header.tensors[name]
        if not more and self._ends[tensor.section] < tensor.offset:
            self._writer.write(tensor.section, bytes(tensor.offset - self._ends[tensor.section]))
            self._ends[tensor.section] = tensor.offset
        self._writer.write(tensor.section, np.ascontiguousarray(data))
        self._ends[tensor.section] += data.nbytes

    def _in_parts(self, specs: Sequence[TensorSpec], parts: int) -> Callable[[int], None]:
        """To be called with how many of some tensors' parts have been done: reports their weights."""
        weights, done = sum(map(_weights, specs)), 0

        def report(more: int) -> None:
            nonlocal done
            before, done = done, done + more
            self._report(specs[-1].name, weights * done // parts - weights * before // parts)

        return report

    def _report(self, what: str, weights: int) -> None:
        self._done += weights
        self._progress(what, self._done, self._total)


def _weights(spec: TensorSpec) -> int:
    return math.prod(spec.shape)
