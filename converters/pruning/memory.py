"""What pruning takes of memory, before it begins."""

import psutil

from edgert.control_groups import control_groups
from edgert.converters.source import Source
from edgert.errors import SourceError

from .request import STRUCTURED, Request, prunable

_A_WEIGHT = {"magnitude": 26, "wanda": 32, "auto": 32, "dsnot": 36, "sparsegpt": 28}
"""Bytes for each weight of the matrix that is being pruned: it, its scores, and what they are compared with."""
_A_MOMENT = 4 + 5 * 8
"""Bytes for each of the second moments of its inputs: as they are, and while their factor is computed."""


def needed_bytes(source: Source, request: Request, tokens: int) -> int:
    """What pruning takes at most, for a text of so many tokens."""
    config = source.config
    widest = max(2 * config.intermediate_size, config.query_size + 2 * config.key_value_size)
    text = 4 * tokens * (3 * config.hidden_size + widest) if request.needs_text else 0
    if request.method in STRUCTURED:
        return text
    matrices = [spec.shape for spec in prunable(config)]
    moments = _A_MOMENT if request.method == "sparsegpt" else 0
    return text + max(_A_WEIGHT[request.method] * rows * columns + moments * columns * columns
                      for rows, columns in matrices)


def free_bytes() -> int:
    """What this process may still take, by what is free and by its control groups' limits."""
    return min([psutil.virtual_memory().available, *(max(limit - used, 0) for limit, used in control_groups())])


def require_memory(source: Source, request: Request, tokens: int) -> None:
    """Raises SourceError where pruning takes more than there is."""
    needed, free = needed_bytes(source, request, tokens), free_bytes()
    if needed > free:
        less = " or prune by wanda, which takes less," if request.method == "sparsegpt" else ""
        raise SourceError(f"pruning by {request.method} takes about {needed / 1e6:.0f} MB of memory, and "
                          f"{free / 1e6:.0f} MB may be used: allow it more,{less} or prune on a larger machine")
