"""What an answer and whoever computes it tell each other: how tokens are chosen, and which ones were."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .sampling import Choice


class Chosen(NamedTuple):
    """A token of the answer. logprob, top: as in Piece, where they were asked for. ends: whether it ends the answer."""

    token: int
    ends: bool = False
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Choosing(NamedTuple):
    """Chooses the next tokens of an answer from logits, float32 of shape (vocab_size,) which are not kept.

    The second argument is the tokens before it that are not part of the answer yet.
    """

    exact: Callable[[np.ndarray, Sequence[int]], Chosen]
    """From the model's logits."""
    guess: Callable[[np.ndarray, Sequence[int]], Choice]
    """From a draft's, which may be of the first tokens of the vocabulary only; with the margin."""
    lenient: Callable[[np.ndarray, Sequence[int], int, Chosen], Chosen | None]
    """A guess, the third argument, in place of what the model's logits chose, the fourth, where its price can be paid
    (lenience.py); it is a token of the answer then."""


@dataclass
class Step:
    """What computing brought. chosen: the next tokens. guessed, right: how many were guessed before, and how many of
    those were right, or taken all the same. siblings: 1 where the first that was not right had a second choice that
    was. draft_s, verify_s: seconds of guessing and of checking, of all answers that were computed together."""

    chosen: list[Chosen] = field(default_factory=list)
    guessed: int = 0
    right: int = 0
    siblings: int = 0
    draft_s: float = 0.0
    verify_s: float = 0.0
