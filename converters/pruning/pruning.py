"""A model pruned as asked, before it is converted."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import edgert
from edgert.converters.source import Source
from edgert.errors import SourceError

from .request import Request, prunable
from .scratch import Scratch
from .weights import WeightPruning

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pruned:
    """A pruned model, and what bundles say of how it was pruned."""

    source: Source
    record: dict[str, Any] = field(default_factory=dict)


@contextmanager
def pruned(source: Source, request: Request, windows: np.ndarray | None, path: Path, progress: Progress,
           say: Callable[[str], object]) -> Iterator[Pruned]:
    """The model as it is pruned, which can be read within the block: until the bundle at `path` is whole.

    windows: token ids of a text, None without calibrating. progress(what, weights done, weights in all). say(sentence):
    called where an interrupted one is gone on with. Raises SourceError or BundleError.
    """
    request.check(source.config)
    if windows is None and request.needs_text:
        raise SourceError(f"{request.method} needs a text to see what the model does with it: leave --no-calibrate out, "
                          "give one with --calibrate, or prune by magnitude")
    amounts = {spec.name: request.amount for spec in prunable(source.config)}
    with Scratch(path, _key(source, request, windows)) as scratch:
        made = 0

        def report(weights: int) -> None:
            nonlocal made
            made += weights
            progress("pruning", made, pruning.weights)

        pruning = WeightPruning(source, request, amounts, windows, scratch, report)
        if scratch.kept is not None:
            say(f"{path}: going on with what an interrupted conversion has pruned")
        pruning.run()
        yield Pruned(pruning.source, {"method": request.method, "amount": request.amount,
                                      "pattern": request.pattern.name, "zeros": pruning.zeros})
        scratch.done = True


def _key(source: Source, request: Request, windows: np.ndarray | None) -> str:
    """What a pruned model depends on."""
    digest = hashlib.sha256(json.dumps([source.provenance, edgert.__version__, str(request)]).encode())
    if windows is not None:
        digest.update(windows.tobytes())
    return digest.hexdigest()
