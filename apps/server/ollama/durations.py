"""Durations and times as Ollama writes them."""

import math
import re
from datetime import UTC, datetime, timedelta

from ..errors import ApiError

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(rf"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)({'|'.join(_UNITS)})")
_NEVER = timedelta(microseconds=(1 << 63) // 1000)
"""How far away "never" is for Ollama: as far as its durations go."""


def seconds_of(keep_alive: float | str) -> float:
    """For how long a model is to be kept, in seconds; infinity for ever, which any negative number says. Texts are as
    in Go, "1h30m", or numbers. Raises ApiError."""
    if isinstance(keep_alive, str):
        text = keep_alive.strip()
        sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
        if re.fullmatch(r"[0-9]+(\.[0-9]*)?", digits):
            keep_alive = sign * float(digits)
        elif re.fullmatch(f"({_PART.pattern})+", digits):
            keep_alive = sign * sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(digits))
        else:
            raise ApiError(400, f"keep_alive is {keep_alive[:40]!r}; give seconds, or a text like 5m or 1h30m")
    return math.inf if keep_alive < 0 else keep_alive


def time_text(when: datetime | None = None) -> str:
    """A time as RFC 3339 has it, in UTC; now by default."""
    return (when or datetime.now(UTC)).astimezone(UTC).isoformat().replace("+00:00", "Z")


def time_after(seconds: float) -> datetime:
    """The time in so many seconds."""
    try:
        return datetime.now(UTC) + min(timedelta(seconds=seconds), _NEVER)
    except OverflowError:
        return datetime.now(UTC) + _NEVER
