"""Shares, as percentages: options, which may be fractions too, and what is told."""

import math

import click

from edgert.generation.lenience import MOST_LOSS


class _Share(click.ParamType):
    """What may be lost of an answer, as a fraction."""

    name = "percentage"

    def convert(self, value: float | str, parameter: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            share = _fraction(value)
        except ValueError:
            self.fail(f"{value!r} is no percentage; give one like 3%", parameter, context)
        if not 0 <= share <= MOST_LOSS:
            self.fail(f"{value} is not between 0% and {100 * MOST_LOSS:.0f}%; give one like 3%", parameter, context)
        return share


class _Shares(click.ParamType):
    """Shares of neurons, as fractions."""

    name = "percentages"

    def convert(self, value: tuple[float, ...] | str, parameter: click.Parameter | None,
                context: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(map(_fraction, value.split(",")))
        except ValueError:
            found = ()
        if not found or not all(0 < share <= 1 for share in found):
            self.fail(f"{value!r} are no shares; give some like 70%,50%", parameter, context)
        return found


def _fraction(text: str) -> float:
    """What a number says: 3% is 0.03, and so is 0.03. Raises ValueError."""
    number = float(text.strip().removesuffix("%"))
    return number / 100 if "%" in text else number


def percent(share: float, *, at_least: bool = False) -> str:
    """A share in two digits. at_least: rounded up, so that --max-loss takes it for no less. What is above all that may
    be lost is not told exactly."""
    if share > MOST_LOSS:
        return f"more than {100 * MOST_LOSS:.0f} %"
    number = 100 * share
    if not number:
        return "0 %"
    places = max(1 - math.floor(math.log10(number)), 0)
    number = math.ceil(number * 10 ** places) / 10 ** places if at_least else round(number, places)
    return f"{number:.{places}f}".rstrip("0").rstrip(".") + " %" if places else f"{number:.0f} %"


SHARE = _Share()
SHARES = _Shares()
