"""Patterns: which weights of a matrix may be zero together.

All choose from scores, float32 of the shape of the matrix, those that are least, and give what is kept as bool of that
shape. Of equal scores the first are pruned, so that a choice is the same on every machine. Parts of `amount` are
rounded down.
"""

import math
import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgert.errors import SourceError
from edgert.kernels.formats import TILE

_BLOCK = re.compile(r"(\d{1,4})x(\d{1,4})")
_N_OF_M = re.compile(r"(\d{1,4}):(\d{1,4})")
_WIDTHS = (1, 2, 4, 8, 16, 32)
"""Columns of a block of weights: it lies within a block of the formats."""


class Pattern(Protocol):
    """Which weights may be zero together."""

    @property
    def name(self) -> str:
        """As users write it."""

    def check(self, shape: tuple[int, ...], amount: float) -> str | None:
        """What is wrong with pruning a matrix of this shape by so much, if anything."""

    def kept(self, scores: np.ndarray, amount: float, *, by_row: bool) -> np.ndarray:
        """by_row: whether scores are compared only with those of the same row (tile), or with all of the matrix."""


@dataclass(frozen=True)
class Unstructured:
    """Any weights."""

    name = "unstructured"

    def check(self, shape: tuple[int, ...], amount: float) -> str | None:
        return _too_little(shape[1], amount, "weight of a row")

    def kept(self, scores: np.ndarray, amount: float, *, by_row: bool) -> np.ndarray:
        return largest(scores if by_row else scores.reshape(1, -1), amount).reshape(scores.shape)


@dataclass(frozen=True)
class NOfM:
    """Of each `m` neighbours of a row `n` are kept."""

    n: int
    m: int

    @property
    def name(self) -> str:
        return f"{self.n}:{self.m}"

    def check(self, shape: tuple[int, ...], amount: float) -> str | None:
        if shape[1] % self.m:
            return f"its rows of {shape[1]} weights do not divide into groups of {self.m}"
        return None

    def kept(self, scores: np.ndarray, amount: float, *, by_row: bool) -> np.ndarray:
        groups = scores.reshape(-1, self.m)
        kept = np.ones(groups.shape, bool)
        np.put_along_axis(kept, np.argsort(groups, 1, kind="stable")[:, :self.m - self.n], False, 1)
        return kept.reshape(scores.shape)


@dataclass(frozen=True)
class Blocks:
    """Blocks of the kernels' tiles: TILE rows, from row 0 on, and so many columns of them."""

    columns: int

    @property
    def name(self) -> str:
        return f"{TILE}x{self.columns}"

    def check(self, shape: tuple[int, ...], amount: float) -> str | None:
        return _too_little(-(-shape[1] // self.columns), amount, "block of a row of blocks")

    def sums(self, values: np.ndarray) -> np.ndarray:
        """What the values of each block add up to, float32 of shape (tiles, blocks)."""
        rows, columns = values.shape
        padded = np.pad(values, ((0, -rows % TILE), (0, -columns % self.columns)))
        return padded.reshape(-1, TILE, padded.shape[1] // self.columns, self.columns).sum((1, 3))

    def spread(self, kept: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """What is kept of blocks, bool of shape (tiles, blocks), for each weight of a matrix of this shape."""
        return kept.repeat(TILE, 0).repeat(self.columns, 1)[:shape[0], :shape[1]]

    def kept(self, scores: np.ndarray, amount: float, *, by_row: bool) -> np.ndarray:
        sums = self.sums(np.square(scores))
        kept = largest(sums if by_row else sums.reshape(1, -1), amount).reshape(sums.shape)
        return self.spread(kept, scores.shape)


def largest(scores: np.ndarray, amount: float) -> np.ndarray:
    """All but the least `amount` of each row: bool of the same shape."""
    count = pruned_of(scores.shape[1], amount)
    if not count:
        return np.ones(scores.shape, bool)
    limit = np.partition(scores, count - 1, 1)[:, count - 1, None]
    pruned, equal = scores < limit, scores == limit
    pruned |= equal & (np.cumsum(equal, 1, dtype=np.int32) <= count - pruned.sum(1, dtype=np.int32, keepdims=True))
    return ~pruned


def pruned_of(count: int, amount: float) -> int:
    """How many of so many are pruned."""
    return math.floor(count * amount + 1e-9)


def _too_little(count: int, amount: float, what: str) -> str | None:
    """What is wrong with pruning so many by so much."""
    return None if pruned_of(count, amount) else f"not one {what} would be pruned"


def pattern_of(text: str) -> Pattern:
    """The pattern that a user names. Raises SourceError."""
    if text == "unstructured":
        return Unstructured()
    if (match := _N_OF_M.fullmatch(text)) and 0 < int(match[1]) < int(match[2]):
        return NOfM(int(match[1]), int(match[2]))
    if (match := _BLOCK.fullmatch(text)) and int(match[1]) == TILE and int(match[2]) in _WIDTHS:
        return Blocks(int(match[2]))
    raise SourceError(f"pattern {text!r} is not known; known: unstructured, N:M such as 2:4 (of each 4 neighbours 2 "
                      f"are kept), and blocks of {TILE} rows: {', '.join(f'{TILE}x{columns}' for columns in _WIDTHS)}")
