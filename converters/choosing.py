"""Choosing a mix of formats for a source: the pass through the model before the one that converts it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from edgert.errors import SourceError

from .layout import lay_out
from .mix import Mix, for_loss, for_size, mixed, require_within
from .presets import LOSSES, Preset
from .rounding import Importances, windows_for
from .sensitivity import FEWER, Part, Sensitivity, judging_windows, parts_of
from .source import Source


def parts_to_choose(source: Source) -> list[Part]:
    """What there is a choice for: matrices that preset q6 has in 6 bits. Raises SourceError where there is none."""
    if source.config.selective:
        kind = "with experts" if source.config.experts else "whose neurons are mostly zero"
        raise SourceError(f"presets {' and '.join(LOSSES)} and --size are not for models {kind}; take another preset, "
                          "such as q4")
    formats = Preset("q6").formats(source)
    return parts_of([spec for spec in source.config.tensors() if spec.is_matrix and formats[spec.name] == "q6"])


def choose(source: Source, preset_name: str, size: int | None, provenance: dict[str, object], texts: Sequence[Path], *,
           calibrate: bool, progress: Callable[[int, int], None]) -> Mix:
    """The mix for a preset of LOSSES, or for a bundle of at most `size` bytes.

    texts, calibrate: as of convert. progress(weights gone through, in all) is called after each part of the model.
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
    done = 0

    def went_through(weights: int) -> None:
        nonlocal done
        done += weights
        progress(done, total)

    known = None if calibrating is None else Importances(source, coarse, calibrating, went_through)
    sensitivity = Sensitivity(source, windows, parts, known.of if known else lambda name: None, went_through)
    total = sensitivity.weights + (known.weights if known else 0)
    sensitivity.measure()
    if size is None:
        return mixed(preset_name, parts, for_loss(parts, LOSSES[preset_name]))
    return mixed("mixed", parts, for_size(parts, size, size_of), size=size)
