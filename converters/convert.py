"""Converting: a source becomes a bundle, tensor by tensor, in memory bounded by the largest part of one tensor."""

import hashlib
import os
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import edgert
from edgert.bundle import BundleWriter, Header
from edgert.bundle.contents import Kind, contents
from edgert.bundle.header import CHAT_TEMPLATE, GROUP_CHECKSUMS, TOKENIZER
from edgert.bundle.journal import Entry, until_whole
from edgert.errors import SourceError
from edgert.models.tensors import TensorSpec

from .calibration import State
from .calibration_text import shipped_windows, windows_of
from .choosing import choose, journal_of
from .cluster import ClusterPieces, connected
from .destination import destination, require_apart
from .interruption import cleaned_up
from .layout import lay_out
from .mix import Mix
from .open_source import open_source
from .pieces import Piece, Pieces, weights_of
from .presets import DEFAULT, LOSSES, Preset, preset
from .pruning.pruning import Pruned, pruned
from .pruning.request import requested
from .pruning.scratch import remove_left
from .pruning.search import seconds_of
from .rounding import Importances, newly_rounded, windows_for
from .source import Source
from .sparsity import sparse_formats, told

Progress = Callable[[str, int, int], None]

KEEP_S = 10
"""Seconds after which what is done is kept again."""


def convert(source: str, out: str | os.PathLike[str], preset_name: str = DEFAULT,
            progress: Progress = lambda what, done, total: None, *, size: int | None = None, calibrate: bool = True,
            texts: Sequence[str | os.PathLike[str]] = (), cluster: str | None = None, prune: str | None = None,
            search_time: str | None = None, predictors: bool = False,
            say: Callable[[str], object] = lambda sentence: None) -> list[Kind]:
    """Convert a GGUF file, a safetensors folder, ONNX or `hf:org/name[@rev]` to a bundle at `out`.

    size: the most bytes that the bundle may have, in place of a preset: the mix of formats that is expected to lose
    least (mix.py). calibrate: where weights are rounded to 4 bits or fewer that were not before, run some text through
    the model and round them so that it changes least (calibration.py). texts: files to calibrate with; without them it
    is a text that comes with edgert. progress(what, weights done, weights in all) is called after each part; of what is
    measured before the conversion, the weights are those of that pass. What the bundle is made of comes back. Where
    `out` is a link, what it points to is written.

    A conversion that takes longer keeps every few seconds what it has done, beside `out`. Interrupted, the next of the
    same files with the same options goes on from there, to the same bundle; say(sentence) is called with that, or where
    it cannot.

    cluster: the address of a Ray cluster whose workers convert layers, "" for the nearest (cluster.py).

    prune: METHOD:AMOUNT[:PATTERN], what the model is to do without (pruning/request.py). search_time: how long amounts
    are searched for, such as 20m. predictors: of a sparse model, also what `max_loss` needs to leave out neurons.

    Raises SourceError, DownloadError or BundleError, and, in the main thread, SystemExit after a SIGTERM or SIGHUP that
    would have ended the program (interruption.py); then there is no bundle at `out`, or still the one of before.
    """
    chosen, request = preset(preset_name), None if prune is None else requested(prune)
    if search_time is not None and (request is None or request.method != "auto"):
        raise SourceError("--time says how long --prune auto:AMOUNT may search; nothing else is searched for")
    seconds = None if search_time is None else seconds_of(search_time)
    path = destination(Path(out))
    require_apart(path, [Path(source)])  # before all of it is read for its hash
    opened = open_source(source, reading=partial(progress, f"reading {Path(source).name}"))
    require_apart(path, [file.path for file in opened.files])
    if predictors and not opened.config.sparse:
        raise SourceError(f"{source}: predictors say which neurons are not zero, and this model's activation, "
                          f"{opened.config.hidden_act}, makes no zeros; convert it without them")
    if predictors and not calibrate:
        raise SourceError("predictors are computed while calibrating: convert with that, or without them")
    paths = [Path(text) for text in texts] if calibrate else []
    with (nullcontext() if cluster is None else connected(cluster) as ray, cleaned_up(),
          until_whole(measured := journal_of(path))):
        if chosen.name not in LOSSES and size is None:
            measured.remove()
        if request is None:
            remove_left(path)
            header = _write(Pruned(opened), chosen, size, path, paths, ray, progress, say, calibrate=calibrate,
                            predictors=predictors)
        else:
            windows = windows_of(opened, paths) if paths else shipped_windows(opened) if calibrate else None
            with pruned(opened, request, windows, path, progress, say, seconds=seconds, ray=ray) as made:
                header = _write(made, chosen, size, path, paths, ray, progress, say, calibrate=calibrate,
                                predictors=predictors)
    return contents(header)


def _write(pruned: Pruned, chosen: Preset | Mix, size: int | None, path: Path, texts: Sequence[Path], ray: Any,
           progress: Progress, say: Callable[[str], object], *, calibrate: bool, predictors: bool) -> Header:
    """Write the bundle of a model. Raises as `convert`."""
    opened = pruned.source
    provenance = {**opened.provenance, "edgert": edgert.__version__, "preset": chosen.name}
    if chosen.name in LOSSES or size is not None:
        provenance |= {} if size is None else {"preset": "mixed"}
        chosen = choose(opened, chosen.name, size, provenance, texts, path, pruned.record, calibrate=calibrate,
                        progress=lambda done, total: progress("what bits cost", done, total), say=say)
    sparse = sparse_formats(opened, chosen.formats(opened))
    for sentence in told(opened, sparse):
        say(f"{path}: {sentence}")
    header = lay_out(opened, chosen, provenance, sparse, predictors=predictors)
    if pruned.record:
        header.quantization["pruning"] = pruned.record
    if texts and (pruned.record or newly_rounded(opened, header) or opened.config.selective):
        header.provenance["calibration"] = ", ".join(text.name for text in texts)
    windows = windows_for(opened, header, texts) if calibrate else None
    if predictors and windows is None:
        raise SourceError("predictors are computed from a text, and the one that comes with edgert is no text for this "
                          "model's tokenizer: name another with --calibrate, or convert without --predictors")
    importances = None if windows is None else Importances(opened, header, windows, lambda n: calibrating(n))
    total = sum(map(weights_of, opened.config.tensors())) + (importances.weights if importances else 0)
    with BundleWriter(path, header, _key(header, calibrate, windows)) as writer:
        pieces = (Pieces(opened, header, importances) if ray is None else
                  ClusterPieces(ray, opened, header, importances, windows))
        conversion = _Conversion(opened, header, pieces, writer, progress, total)

        def calibrating(weights: int) -> None:
            conversion.calibrated += weights
            conversion.report("calibrating")

        if writer.kept is not None:
            conversion.go_on(writer.kept)
            say(f"{path}: going on with what an interrupted conversion has left: {conversion.share:.0%} is done")
        elif writer.discarded:
            say(f"{path}: starting again: what an interrupted conversion has left is of another source, edgert or "
                "choice of options, or is damaged")
        conversion.run()
        for file in opened.files:
            file.require_unchanged()
        writer.commit()
    return header


def _key(header: Header, calibrate: bool, windows: np.ndarray | None) -> str:
    """What a bundle's bytes depend on: the source's hashes, edgert's version and the preset, which are in the header,
    and how it is calibrated."""
    digest = hashlib.sha256(header.to_json())
    digest.update(bytes([calibrate]))
    if windows is not None:
        digest.update(windows.tobytes())
    return digest.hexdigest()


class _Conversion:
    """All that goes into a bundle, written section by section and reported part by part.

    pieces: what it is made of. total: weights to go through in all.
    """

    def __init__(self, source: Source, header: Header, pieces: Pieces, writer: BundleWriter, progress: Progress,
                 total: int) -> None:
        self._source, self._header, self._pieces, self._writer = source, header, pieces, writer
        self._progress, self._total = progress, total
        self._tensors = list(source.config.tensors())
        self._tensors_done = self._written = self.calibrated = 0
        """How many tensors are written; how many weights are, and how many were gone through to calibrate."""
        self._ends: dict[str, int] = defaultdict(int)
        self._checksums = {layout.name: array("Q") for layout in header.unit_layouts()}
        self._kept_at = time.monotonic()

    @property
    def share(self) -> float:
        """How much is done."""
        return (self._written + self.calibrated) / self._total

    def go_on(self, entry: Entry) -> None:
        """Be where an earlier conversion was when it kept this."""
        state, arrays = entry.state, dict(entry.arrays)
        self._tensors_done, self._written, self.calibrated = state["tensors"], state["written"], state["calibrated"]
        self._ends |= state["ends"]
        if self._header.config.selective:
            self._header.quantization["activity"] = state["activity"]
        for name in self._checksums:
            self._checksums[name] = array("Q", arrays.pop(name).tobytes())
        self._pieces.go_on(State(state["steps"], self.calibrated,
                                 {int(number): values for number, values in arrays.items()}))
        self.report("going on")

    def run(self) -> None:
        """Write everything that is not yet written. Raises SourceError or BundleError."""
        if not self._tensors_done:
            self._writer.write(TOKENIZER, self._source.tokenizer_json.encode())
            if self._source.chat_template is not None:
                self._writer.write(CHAT_TEMPLATE, self._source.chat_template.encode())
        for spec in self._tensors[self._tensors_done:]:
            for piece in self._pieces.of(spec):
                self._write(piece)
                self._written += piece.weights
                self.report(spec.name)
            self._tensors_done += 1
            self._keep(spec)
        self._pieces.finish()
        checksums = sum((self._checksums[layout.name] for layout in self._header.unit_layouts()), array("Q"))
        self._writer.write(GROUP_CHECKSUMS, np.array(checksums, dtype="<u8"))

    def report(self, what: str) -> None:
        """Say how much is done."""
        self._progress(what, self._written + self.calibrated, self._total)

    def _write(self, piece: Piece) -> None:
        """A piece, at its place in its section."""
        section, tensor = piece.place, self._header.tensors.get(piece.place)
        if tensor is not None:
            section = tensor.section
            if (gap := tensor.offset - self._ends[section]) > 0:
                self._writer.write(section, bytes(gap))
                self._ends[section] = tensor.offset
        self._writer.write(section, np.ascontiguousarray(piece.data))
        self._ends[section] += piece.data.nbytes
        if section in self._checksums:
            self._checksums[section].extend(piece.checksums)

    def _keep(self, spec: TensorSpec) -> None:
        """Keep what is done, if it is time, after a whole layer, or what is in none."""
        following = self._tensors[self._tensors_done:][:1]
        within = spec.layer is not None and spec.layer in (after.layer for after in following)
        if time.monotonic() < self._kept_at + KEEP_S or within or (state := self._pieces.state()) is None:
            return
        self._writer.keep({
            "tensors": self._tensors_done, "written": self._written, "calibrated": state.weights, "steps": state.steps,
            "ends": self._ends, "activity": self._header.quantization.get("activity"),
        }, {**{name: np.array(found) for name, found in self._checksums.items()},
            **{str(number): values for number, values in state.values.items()}})
        self._kept_at = time.monotonic()
