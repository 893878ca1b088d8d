"""What a user asks for with `--prune METHOD:AMOUNT[:PATTERN]`."""

import math
import re
from dataclasses import dataclass

from edgert.errors import SourceError
from edgert.models.config import Config
from edgert.models.tensors import FEED_FORWARD, Role, TensorSpec

from .patterns import NOfM, Pattern, Unstructured, pattern_of

METHODS = {
    "magnitude": "the smallest weights",
    "wanda": "the smallest products of weight and size of the input",
    "dsnot": "the same, and then weights exchanged so that outputs keep their mean",
    "sparsegpt": "those that others can make up for best, which then do",
    "auto": "as wanda does, of each layer as much as it can spare: searched for",
    "neurons": "neurons of feed-forward parts that contribute least",
    "layers": "layers that change their input least",
}
"""What each method prunes."""
STRUCTURED = frozenset({"neurons", "layers"})
"""Methods whose model is smaller, and has no zeros."""
_ROLES = FEED_FORWARD | {Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT}
"""Of matrices whose weights are pruned: not embedding and output head, where each row is a token's own, nor routers."""
_AMOUNT = re.compile(r"(\d{1,3}(?:\.\d{1,4})?)%")


@dataclass(frozen=True)
class Request:
    """What is to be pruned, and how.

    method: one of METHODS. amount: the share of what the method prunes, above 0, below 1.
    """

    method: str
    amount: float
    pattern: Pattern

    @property
    def needs_text(self) -> bool:
        """Whether the method must know what matrices get to see."""
        return self.method != "magnitude"

    def check(self, config: Config) -> None:
        """Raises SourceError where a model cannot be pruned so."""
        if config.experts or config.sparse:
            kind = "a mixture of experts" if config.experts else "a model with neurons that are zero (ReLU)"
            raise SourceError(f"{config.architecture}: {kind} is not pruned, since most of its weights already rest "
                              "for most tokens; leave --prune out")
        if config.dense_layers:
            raise SourceError(f"{config.architecture}: a model whose matrices of feed-forward parts stand for "
                              "themselves is not pruned; leave --prune out")
        if self.method in STRUCTURED:
            return
        for spec in prunable(config):
            if wrong := self.pattern.check(spec.shape, self.amount):
                raise SourceError(f"{self} does not suit {spec.name}: {wrong}; choose another "
                                  f"{'pattern' if isinstance(self.pattern, NOfM) else 'amount'}")

    def __str__(self) -> str:
        pattern = "" if isinstance(self.pattern, Unstructured) else f":{self.pattern.name}"
        return f"{self.method}:{100 * self.amount:g}%{pattern}"


def prunable(config: Config) -> list[TensorSpec]:
    """The matrices of a model whose weights are pruned, in the order of use."""
    return [spec for spec in config.tensors() if spec.is_matrix and spec.layer is not None and spec.role in _ROLES]


def requested(text: str) -> Request:
    """What `METHOD:AMOUNT[:PATTERN]` asks for. Raises SourceError."""
    method, *rest = text.split(":", 2)
    if method not in METHODS:
        raise SourceError(f"{method!r} is not a method of pruning; known: {', '.join(METHODS)}")
    match = _AMOUNT.fullmatch(rest[0]) if rest else None
    if match is None:
        raise SourceError(f"{text!r} names no amount; write METHOD:AMOUNT[:PATTERN], such as {method}:50%")
    amount = float(match[1]) / 100
    if not 0 < amount < 1:
        raise SourceError(f"pruning {rest[0]} {'changes nothing' if amount == 0 else 'leaves nothing'}; the amount is "
                          "above 0% and below 100%")
    pattern = pattern_of(rest[1]) if len(rest) > 1 else Unstructured()
    if len(rest) > 1 and method in STRUCTURED:
        raise SourceError(f"{method} are pruned whole: write {method}:{rest[0]}, without a pattern")
    if isinstance(pattern, NOfM):
        if method == "auto":
            raise SourceError(f"{pattern.name} prunes the same share of every layer, so there is nothing for auto to "
                              f"find; write wanda:{rest[0]}:{pattern.name}, or auto without it")
        share = 1 - pattern.n / pattern.m
        if not math.isclose(amount, share, abs_tol=0.005):
            raise SourceError(f"{pattern.name} prunes {100 * share:.4g}%, not {rest[0]}; write "
                              f"{method}:{100 * share:.4g}%:{pattern.name}")
        amount = share
    elif method == "dsnot" and not isinstance(pattern, Unstructured):
        raise SourceError(f"dsnot exchanges single weights, which blocks do not allow; write "
                          f"wanda:{rest[0]}:{pattern.name}")
    return Request(method, amount, pattern)
