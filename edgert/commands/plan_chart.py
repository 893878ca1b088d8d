"""Charts of a memory plan, as text and as a picture."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edgert.errors import EdgertError

MIB = 1 << 20
_WIDTH, _HEIGHT, _BAR = 60, 12, 40
_LEVELS = " ▁▂▃▄▅▆▇█"
_GAIN = "░"


class Point(NamedTuple):
    """A budget in MiB, and tokens per second: without speculation, and with it where that is faster."""

    budget: float
    plain: float
    best: float


def parts_table(parts: Mapping[str, int], budget: int) -> str:
    """A table of the parts of a budget in MiB, and what is left over, with a bar that shows each part's place in it."""
    used = [(name, size) for name, size in parts.items() if size]
    lines, at = [], 0
    for name, size in [*used, ("left over", budget - sum(size for _, size in used))]:
        start, end = (round(_BAR * edge / budget) for edge in (at, at + size))
        bar = " " * start + ("█" * (end - start) or "▏")
        lines.append(f"{name:20} {size / MIB:8.1f} MiB {100 * size / budget:5.1f} %  {bar}".rstrip())
        at += size
    lines.append(f"{'budget':20} {budget / MIB:8.1f} MiB {100:5.1f} %  {'━' * _BAR}")
    return "\n".join(lines)


def curve(points: Sequence[Point]) -> str:
    """A plot of tokens per second against the budget, drawn with block characters. points: in ascending order."""
    low, high = points[0].budget, points[-1].budget
    top = max(point.best for point in points)
    columns = [_at(points, low + (high - low) * i / (_WIDTH - 1)) for i in range(_WIDTH)]
    gained = any(point.best > point.plain for point in points)
    lines = [f"tokens/s{f'   █ one a pass   {_GAIN} with speculation' if gained else ''}"]
    for row in range(_HEIGHT - 1, -1, -1):
        label = f"{top * (row + 1) / _HEIGHT:8.1f}" if row % 3 == 2 else " " * 8
        cells = "".join(_cell(*(speed / top * _HEIGHT - row for speed in point[1:])) for point in columns)
        lines.append(f"{label} ┤{cells}".rstrip())
    lines.append(f"{0:8.1f} └{'─' * _WIDTH}")
    left, right = f"{low:.0f} MiB", f"{high:.0f} MiB"
    return "\n".join([*lines, f"{'':10}{left}{'budget':^{_WIDTH - len(left) - len(right)}}{right}"])


def _cell(plain: float, best: float) -> str:
    """A cell of a column that is so many cells high, from this one on; for both speeds."""
    block = _LEVELS[round(8 * min(max(plain, 0), 1))]
    return _GAIN if block == " " and best >= 0.5 else block


def _at(points: Sequence[Point], budget: float) -> Point:
    """The last of the points whose budget is not above this one."""
    return [point for point in points if point.budget <= budget + 1e-6][-1]


def require_matplotlib() -> None:
    """Raises EdgertError if matplotlib, with which `picture` draws, is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise EdgertError("--png draws with matplotlib, which is not installed: pip install 'edgert[plot]'")


def picture(path: str, bundle: str, points: Sequence[Point], chosen: Point | None) -> None:
    """Write the same plot as a PNG file, with both ends and the chosen budget marked: its faster way. Raises
    OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    budgets, plain, speeds = zip(*points, strict=True)
    if plain != speeds:
        axes.plot(budgets, plain, color="#1f5f99", linewidth=1, linestyle="dotted", label="one token a pass")
    axes.plot(budgets, speeds, color="#1f5f99", linewidth=2, label="with speculation (an estimate)")
    axes.fill_between(budgets, speeds, color="#1f5f99", alpha=0.12, linewidth=0)
    if plain != speeds:
        axes.legend(loc="upper left", fontsize=9)
    room: dict[str, Any] = {"ha": "center", "va": "bottom", "textcoords": "offset points", "fontsize": 9}
    for (budget, _, speed), what in ((points[0], "smallest\nthat works"), (points[-1], "all in memory")):
        right = budget == points[-1][0]
        axes.plot([budget], [speed], "o", color="#1f5f99")
        axes.annotate(f"{what}\n{budget:.0f} MiB, {speed:.3g} tokens/s", (budget, speed),
                      **{**room, "ha": "right" if right else "left"}, xytext=(0, 8))
    if chosen is not None and points[0].budget < chosen.budget < points[-1].budget:
        budget, speed = chosen.budget, chosen.best
        axes.plot([budget], [speed], "o", color="#c0392b")
        axes.vlines(budget, 0, speed, color="#c0392b", linestyles="dashed", linewidth=1)
        axes.annotate(f"{budget:.0f} MiB\n{speed:.3g} tokens/s", (budget, speed), **room, xytext=(0, 8),
                      color="#c0392b")
    axes.set_title(f"Predicted speed of {bundle} over its memory budget")
    axes.set_xlabel("memory budget of the whole process (MiB)")
    axes.set_ylabel("tokens per second")
    axes.set_ylim(0, 1.25 * max(speeds))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")
