"""Choosing a mix of formats for a source: the pass through the model before the one that converts it.

What is measured is kept in a journal beside the bundle, now and then and when it is whole: an interrupted conversion
goes on from there, also to another size or preset.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edgert
from edgert.bundle import Header
from edgert.bundle.journal import Entry, Journal
from edgert.errors import SourceError

from .calibration import State
from .layout import lay_out
from .mix import Mix, for_loss, for_size, mixed, require_within
from .presets import LOSSES, Preset
from .rounding import Importances, windows_for
from .sensitivity import FEWER, Measured, Part, Sensitivity, judging_windows, parts_of
from .source import Source

KEEP_S = 60
"""Seconds after which what is measured is kept again: it has as many copies of the text as there are matrices."""


def journal_of(path: Path, key: str = "") -> Journal:
    """What is kept beside a bundle that is to be `path`."""
    return Journal(path.with_name(path.name + ".part.bits"), key)


def parts_to_choose(source: Source) -> list[Part]:
    """What there is a choice for: matrices that preset q6 has in 6 bits. Raises SourceError where there is none."""
    if source.config.selective:
        kind = "with experts" if source.config.experts else "whose neurons are mostly zero"
        raise SourceError(f"presets {' and '.join(LOSSES)} and --size are not for models {kind}; take another preset, "
                          "such as q4")
    formats = Preset("q6").formats(source)
    return parts_of([spec for spec in source.config.tensors() if spec.is_matrix and formats[spec.name] == "q6"])


def choose(source: Source, preset_name: str, size: int | None, provenance: dict[str, object], texts: Sequence[Path],
           path: Path, pruning: Mapping[str, Any], *, calibrate: bool, progress: Callable[[int, int], None],
           say: Callable[[str], object]) -> Mix:
    """The mix for a preset of LOSSES, or for a bundle at `path` of at most `size` bytes.

    texts, calibrate: as of convert. pruning: what bundles say of how the source was pruned. progress(weights gone
    through, in all) is called after each part of the model, say(sentence) where an interrupted one is gone on with.
    Raises SourceError.
    """
    parts, windows = parts_to_choose(source), judging_windows(source)
    if windows is None:
        raise SourceError("what bits cost this model cannot be measured: its tokenizer makes too few tokens of a text; "
                          "take another preset, such as q4")
    coarse = lay_out(source, mixed(preset_name, parts, ["q3"] * len(parts)), provenance)

    def size_of(chosen: list[str]) -> int:
        header = lay_out(source, mixed("mixed", parts, chosen, size=size), provenance)
        return max(section.offset + section.length for section in header.sections.values())

    if size is not None:  # said before the pass that takes so long
        require_within(size, size_of([FEWER[0]] * len(parts)), size_of([FEWER[-1]] * len(parts)))
    calibrating = windows_for(source, coarse, texts) if calibrate else None
    journal = journal_of(path, _key(source, pruning, parts, windows, calibrating))
    if _measure(source, coarse, parts, windows, calibrating, journal, progress):
        say(f"{path}: going on with what an interrupted conversion has measured")
    if size is None:
        return mixed(preset_name, parts, for_loss(parts, LOSSES[preset_name]))
    return mixed("mixed", parts, for_size(parts, size, size_of), size=size)


def _key(source: Source, pruning: Mapping[str, Any], parts: Sequence[Part], *windows: np.ndarray | None) -> str:
    """What the losses of parts depend on."""
    names = [spec.name for part in parts for spec in part.specs]
    digest = hashlib.sha256(json.dumps([source.provenance, edgert.__version__, pruning, names]).encode())
    for tokens in windows:
        digest.update(b"" if tokens is None else tokens.tobytes())
        digest.update(bytes([tokens is None]))
    return digest.hexdigest()


def _measure(source: Source, coarse: Header, parts: Sequence[Part], windows: np.ndarray,
             calibrating: np.ndarray | None, journal: Journal, progress: Callable[[int, int], None]) -> bool:
    """Fill in the losses of parts. windows: of `judging_windows`. Returns whether an earlier one was gone on with."""
    done, entry, kept_at = 0, journal.read(), time.monotonic()
    if entry is not None and (losses := entry.state["losses"]) is not None:
        for part, of in zip(parts, losses, strict=True):
            part.losses |= of
        return True

    def went_through(weights: int) -> None:
        nonlocal done
        done += weights
        progress(done, total)

    known = None if calibrating is None else Importances(source, coarse, calibrating, went_through,
                                                            leave_out=False)
    sensitivity = Sensitivity(source, windows, parts, known.of if known else lambda name: None, went_through)
    total = sensitivity.weights + (known.weights if known else 0)
    if entry is not None:
        done = _go_on(entry, sensitivity, known)

    def keep() -> None:
        nonlocal kept_at
        of_text = State() if known is None else known.state()
        if time.monotonic() >= kept_at + KEEP_S and of_text is not None:
            _keep(journal, sensitivity.measured(), of_text, done)
            kept_at = time.monotonic()

    sensitivity.measure(keep)
    with contextlib.suppress(OSError):
        journal.write(Entry({}, {}, {"losses": [part.losses for part in parts]}, {}))
    return entry is not None


def _keep(journal: Journal, measured: Measured, of_text: State, done: int) -> None:
    """Where there is no room for that, nothing changes."""
    states = {"copies": measured.gone, "text": of_text}
    with contextlib.suppress(OSError):
        journal.write(Entry({}, {}, {
            "losses": None, "done": done, "copied": measured.copied, "errors": measured.errors,
            **{name: [state.steps, state.weights] for name, state in states.items()}},
            {f"{name}.{number}": values for name, state in states.items() for number, values in state.values.items()}))


def _go_on(entry: Entry, sensitivity: Sensitivity, known: Importances | None) -> int:
    """Be where an earlier one was when it kept this; returns what it had gone through."""
    def state(of: str) -> State:
        places = {name: name.partition(".") for name in entry.arrays}
        steps, weights = entry.state[of]
        return State(steps, weights, {int(number): entry.arrays[name] for name, (kind, _, number) in places.items()
                                        if kind == of})

    sensitivity.go_on_from(Measured(state("copies"), entry.state["copied"], entry.state["errors"]))
    if known is not None:
        known.go_on(state("text"))
    return int(entry.state["done"])
