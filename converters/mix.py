"""A mix of formats: which matrix gets which, by what each costs (sensitivity.py) in bytes and in divergence.

Every part begins with the fewest bits. Then comes, one after another, whatever gains most for each byte: of a part the
steps on the lower convex hull of its losses over its bytes, so that each gains less than the one before.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from edgert.errors import SourceError

from .presets import Preset
from .sensitivity import FEWER, Part
from .source import Source


@dataclass(frozen=True)
class Mix:
    """A choice of formats for each matrix, in the place of a Preset's; all others are as preset q6 has them.

    record: what the bundle's `quantization` says of it.
    """

    name: str
    chosen: Mapping[str, str]
    record: Mapping[str, object] = field(default_factory=dict)

    def formats(self, source: Source) -> dict[str, str]:
        """The weight format of every matrix, by its canonical name."""
        return Preset("q6").formats(source) | dict(self.chosen)


@dataclass(frozen=True)
class Step:
    """A part that gets the next format. gain: nats a token for each byte more."""

    part: int
    form: str
    gain: float


def steps(parts: Sequence[Part]) -> list[Step]:
    """What to do one after another, from the fewest bits on."""
    found = []
    for number, part in enumerate(parts):
        hull = [FEWER[0]]
        for form in FEWER[1:]:
            if part.losses[form] >= part.losses[hull[-1]]:
                continue
            while len(hull) > 1 and _gain(part, hull[-1], form) >= _gain(part, hull[-2], hull[-1]):
                hull.pop()
            hull.append(form)
        found += [Step(number, after, _gain(part, before, after)) for before, after in pairwise(hull)]
    return sorted(found, key=lambda step: -step.gain)  # stable: of a part, in order


def _gain(part: Part, before: str, after: str) -> float:
    return (part.losses[before] - part.losses[after]) / (part.bytes(after) - part.bytes(before))


def for_loss(parts: Sequence[Part], limit: float) -> list[str]:
    """The format of each part: the first mix on the way that is expected to cost no more than `limit`, less what can be
    taken back of it where the last step was a large one."""
    chosen = [FEWER[0]] * len(parts)
    taken: list[tuple[Step, str]] = []
    for step in steps(parts):
        if expected(parts, chosen) <= limit:
            break
        taken.append((step, chosen[step.part]))
        chosen[step.part] = step.form
    for step, before in reversed(taken):
        fewer = [before if number == step.part else form for number, form in enumerate(chosen)]
        if chosen[step.part] == step.form and expected(parts, fewer) <= limit:
            chosen = fewer
    return chosen


def require_within(size: int, least: int, most: int) -> None:
    """Raises SourceError for a bundle's size that no mix has, or that none has a use for."""
    if not least <= size <= most:
        what = "is too small" if size < least else "is more than that can use (--preset q8 and f16 keep more)"
        raise SourceError(f"--size {size:,} {what}: with 2 to 6 bits a weight a bundle of this model has {least:,} to "
                          f"{most:,} bytes")


def for_size(parts: Sequence[Part], size: int, size_of: Callable[[list[str]], int]) -> list[str]:
    """The format of each part, for a bundle of at most `size` bytes. size_of(chosen): the bytes of a bundle. Raises
    SourceError for a size that is less than the smallest bundle's, or more than that of one that could use it."""
    way, fewest = steps(parts), [FEWER[0]] * len(parts)
    least, most = size_of(fewest), size_of(_after(fewest, way))
    require_within(size, least, most)
    taken: list[Step] = []
    chosen, left, full = list(fewest), size - least, set[int]()
    for step in way:
        more = parts[step.part].bytes(step.form) - parts[step.part].bytes(chosen[step.part])
        if step.part in full or more > left:
            full.add(step.part)
            continue
        left -= more
        chosen[step.part] = step.form
        taken.append(step)
    while size_of(chosen) > size:  # by what sections are filled up with
        taken.pop()
        chosen = _after(fewest, taken)
    return chosen


def expected(parts: Sequence[Part], chosen: Sequence[str]) -> float:
    """The divergence to expect of a mix: the sum of what its parts cost."""
    return sum(part.losses[form] for part, form in zip(parts, chosen, strict=True))


def mixed(name: str, parts: Sequence[Part], chosen: Sequence[str], **record: object) -> Mix:
    """The mix in which parts have these formats."""
    formats = {spec: form for part, of in zip(parts, chosen, strict=True) for spec, form in part.formats(of).items()}
    return Mix(name, formats, {**record, "expected_loss": round(expected(parts, chosen), 5)})


def _after(fewest: Sequence[str], taken: Iterable[Step]) -> list[str]:
    """The formats of all parts after these steps."""
    chosen = list(fewest)
    for step in taken:
        chosen[step.part] = step.form
    return chosen
