"""Loss against speed of several modes, as text and as a picture."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgert.measuring.modes import MIB, by_budget

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WIDTH, _HEIGHT = 60, 10
_COLORS = ("#1f5f99", "#c0392b", "#2e8b57", "#8e5fa8", "#c77f1a")


def scatter(modes: Sequence[Mapping[str, Any]]) -> str:
    """A plot for each budget: tokens per second over loss, a letter for each mode; the front in capitals, the others in
    small letters. What stands in the same place is told beside it."""
    letters = letters_of(modes)
    return "\n\n".join(_plot(budget, [(letters[mode["name"]], at) for mode, at in found if at["loss"] is not None])
                       for budget, found in by_budget(modes))


def letters_of(modes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A letter for each mode; beyond the alphabet an asterisk."""
    return {mode["name"]: LETTERS[number] if number < len(LETTERS) else "*" for number, mode in enumerate(modes)}


def _plot(budget: int, points: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    losses, speeds = [at["loss"] for _, at in points], [at["tok_s"] for _, at in points]
    low, high = min(0.0, *losses), max(losses)
    high = high if high > low else low + 0.01
    top = max(speeds) * 1.05
    cells = [[" "] * (_WIDTH + 1) for _ in range(_HEIGHT)]
    hidden: dict[tuple[int, int], list[str]] = {}
    for letter, at in points:
        row = min(int(at["tok_s"] / top * _HEIGHT), _HEIGHT - 1)
        column = round((at["loss"] - low) / (high - low) * _WIDTH)
        letter = letter if at["pareto"] else letter.lower()
        if cells[row][column] == " ":
            cells[row][column] = letter
            hidden[row, column] = []
        else:
            hidden[row, column].append(letter)
    lines = [f"{budget / MIB:.0f} MiB, tokens/s"]
    for row in range(_HEIGHT - 1, -1, -1):
        label = f"{top * (row + 1) / _HEIGHT:8.1f}" if row % 3 == 0 else " " * 8
        beside = ", ".join(f"{cells[row][column]}{''.join(letters)}" for (at, column), letters in hidden.items()
                           if at == row and letters)
        line = f"{label} ┤{''.join(cells[row])}"
        lines.append(f"{line}  {beside}" if beside else line.rstrip())
    lines.append(f"{0:8.1f} └{'─' * (_WIDTH + 1)}")
    left, right = f"{100 * low:.1f} %", f"{100 * high:.1f} %"
    return "\n".join([*lines, f"{'':10}{left}{'loss':^{_WIDTH + 1 - len(left) - len(right)}}{right}"])


def picture(path: str, title: str, modes: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG file: on the left tokens per second over loss, on the right what is read from flash over loss; a
    colour for each budget, the Pareto front as a line, which goes through filled marks. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    letters = letters_of(modes)
    for number, (budget, found) in enumerate(by_budget(modes)):
        color = _COLORS[number % len(_COLORS)]
        shown = [(mode, at) for mode, at in found if at["loss"] is not None]
        front = sorted((at for _, at in shown if at["pareto"]), key=lambda at: at["loss"])
        left.plot([100 * at["loss"] for at in front], [at["tok_s"] for at in front], color=color, linewidth=1,
                  label=f"{budget / MIB:.0f} MiB")
        for axes, key, unit in ((left, "tok_s", 1.0), (right, "bytes_a_token", 1e-6)):
            for mode, at in shown:
                x, y = 100 * at["loss"], at[key] * unit
                axes.plot([x], [y], "o", color=color, fillstyle="full" if at["pareto"] else "none")
                axes.annotate(letters[mode["name"]], (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8,
                              color=color)
    for axes, label in ((left, "tokens per second"), (right, "MB read from flash for a token")):
        axes.set_xlabel("loss: how much less likely a token is (%)")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(title="memory budget", fontsize=9)
    names = [f"{letters[mode['name']]} {mode['name']}" for mode in modes if mode["budgets"]]
    lines = [", ".join(names[at:at + 5]) for at in range(0, len(names), 5)]
    figure.suptitle("\n".join([f"Modes of {title}; filled: none is faster and loses less", *lines]), fontsize=10)
    figure.savefig(path, format="png")


def percent(share: float | None, digits: int = 1) -> str:
    """A share as people read it; a dash for what was not measured."""
    if share is None or math.isnan(share):
        return "–"
    text = f"{100 * share:.{digits}f} %"
    return text.replace("-0.0 %", "0.0 %")
