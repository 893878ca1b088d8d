"""`edgert eval --predictors`: ways to guess which neurons matter, in one table."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgert.bundle import Bundle
from edgert.measuring.modes import shipped_texts
from edgert.terminal import show, show_json, show_passing

from .gguf import bundle_of
from .loading import read_text
from .modes_chart import percent

TOKENS = 512


def eval_predictors(bundle: str, texts: Sequence[str], shares: Sequence[float], max_tokens: int | None,
                    as_json: bool) -> None:
    """Compare them and show the table. Raises EdgertError."""
    compare = importlib.import_module("edgert.converters.predictors").compare  # by name: it is above this room
    read = {Path(text).name: read_text(text) for text in texts} or shipped_texts()
    with Bundle(bundle_of(bundle)) as opened:
        try:
            result = compare(opened, read, shares, max_tokens or TOKENS,
                             lambda done, total: show_passing(f"predictors: {100 * done // total} % of the weights"))
        finally:
            show_passing()
    if as_json:
        show_json({"bundle": bundle, **result})
    else:
        show("\n".join(_lines(result)))


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    names = result["texts"]
    whole = ", ".join(f"{name} {result['dense'][name]:.3f} ({result['tokens'][name]} tokens)" for name in names)
    yield f"perplexity with all neurons: {whole}; {result['feed_forward'] / 1e6:.1f} MB of feed-forward weights a token"
    yield ""
    yield (f"{'':14} {'neurons':>9} {'recall':>7} {'read':>9} {'to guess':>9}"
           + "".join(f" {f'loss, {name[:12]}':>18}" for name in names))
    for row in result["ways"]:
        losses = "".join(f" {percent(row['loss'][name]):>18}" for name in names)
        yield (f"{row['way']:14} {percent(row['computed']):>9} {percent(row['recall'], 0):>7} "
               f"{row['read'] / 1e6:6.1f} MB {row['guess'] / 1e6:6.1f} MB{losses}")
    yield ""
    yield ("neurons: that were computed; of TEAL, WINA and R-Sparse inputs of each matrix. recall: of those that "
           "matter most, how many were\namong them. read: of the weights, for a token; to guess: what the guess is "
           "made of, which would stay in memory.")
