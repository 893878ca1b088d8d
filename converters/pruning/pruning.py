"""A model pruned as asked, before it is converted."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import edgert
from edgert.bundle.header import PRUNED_KINDS
from edgert.bundle.journal import until_whole
from edgert.converters.source import Source
from edgert.errors import SourceError

from .judging import Judge
from .memory import require_memory
from .request import STRUCTURED, Request, prunable
from .scratch import Scratch
from .search import WINDOWS, Search, by_name, journal_of, losses_here, losses_there
from .structure import without_layers, without_neurons
from .weights import WeightPruning

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pruned:
    """A pruned model, and what bundles say of how it was pruned."""

    source: Source
    record: dict[str, Any] = field(default_factory=dict)


@contextmanager
def pruned(source: Source, request: Request, windows: np.ndarray | None, path: Path, progress: Progress,
           say: Callable[[str], object], *, seconds: float | None = None, ray: Any = None) -> Iterator[Pruned]:
    """The model as it is pruned, which can be read within the block: until the bundle at `path` is whole.

    windows: token ids of a text, None without calibrating. progress(what, weights done, weights in all). say(sentence):
    called where an interrupted one is gone on with. seconds: how long to search for amounts; None for a number of
    generations. ray: the module, where a cluster judges. Raises SourceError, BundleError or ClusterError.
    """
    request.check(source.config)
    if windows is None and request.needs_text:
        raise SourceError(f"{request.method} needs a text to see what the model does with it: leave --no-calibrate "
                          "out, give one with --calibrate, or prune by magnitude")
    require_memory(source, request, 0 if windows is None else windows.size)
    record: dict[str, Any] = {"method": request.method, "amount": request.amount, "pattern": request.pattern.name,
              "zeros": dict.fromkeys(PRUNED_KINDS, 0)}
    made = 0

    def report(weights: int, total: int) -> None:
        nonlocal made
        made += weights
        progress("pruning", made, total)

    if request.method in STRUCTURED:
        assert windows is not None
        without = without_neurons if request.method == "neurons" else without_layers
        yield Pruned(without(source, request.amount, windows, report), record)
        return
    amounts = {spec.name: request.amount for spec in prunable(source.config)}
    key = _key(source, request, windows)
    with ExitStack() as stack:
        scratch = stack.enter_context(Scratch(path))  # before the search, whose journal is then nobody else's
        if request.method == "auto":
            assert windows is not None
            stack.enter_context(until_whole(journal := journal_of(path, key)))
            judge = Judge.of(source, request.pattern, windows[::max(len(windows) // WINDOWS, 1)][:WINDOWS])
            search = Search(judge, request.amount, seconds, journal,
                            losses_here(judge) if ray is None else losses_there(judge, ray))
            found = np.round(search.run(progress), 5)
            amounts = by_name(search.groups, found)
            record["amounts"] = {kind: [float(amount) for group, amount in zip(search.groups, found, strict=True)
                                        if group.kind == kind] for kind in PRUNED_KINDS}
            say(f"searched for {search.generation} generations: {search.loss:.4f} nats are lost for a token, "
                f"{search.uniform:.4f} with one amount for all")
        scratch.begin(key + json.dumps(amounts))
        pruning = WeightPruning(source, request, amounts, windows, scratch, report)
        if scratch.kept is not None:
            say(f"{path}: going on with what an interrupted conversion has pruned")
        pruning.run()
        yield Pruned(pruning.source, record | {"zeros": pruning.zeros})
        scratch.done = True


def _key(source: Source, request: Request, windows: np.ndarray | None) -> str:
    """What a pruned model depends on."""
    digest = hashlib.sha256(json.dumps([source.provenance, edgert.__version__, str(request)]).encode())
    if windows is not None:
        digest.update(windows.tobytes())
    return digest.hexdigest()
