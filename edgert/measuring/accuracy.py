"""How often a model is right."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Accuracy(NamedTuple):
    """value: the share of right answers, 0 to 1. error: its standard error, over the choice of questions."""

    value: float
    error: float

    @classmethod
    def of(cls, right: Sequence[bool]) -> "Accuracy":
        """Of at least one answer. The error is the sample's standard deviation over sqrt(n), as lm-evaluation-harness
        has it; 0 for a single answer."""
        value = sum(right) / len(right)
        return cls(value, math.sqrt(value * (1 - value) / max(len(right) - 1, 1)))
