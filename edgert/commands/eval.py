"""`edgert eval`: perplexity, also against llama.cpp."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgert.errors import PeerError
from edgert.measuring.perplexity import EveryLogits, score, windows
from edgert.terminal import show, show_json, show_passing

from .loading import load_model, model_options, read_text

_ROWS = 64
"""Positions whose logits are in memory at once, at most."""


@click.command("eval")
@click.argument("bundle")
@click.option("--text", "text_file", required=True, help="The text file to measure on.")
@click.option("--against", metavar="MODEL.gguf", help="Also measure llama.cpp on this file, with the same tokens.")
@click.option("--window", type=click.IntRange(4, 1 << 20), default=512, show_default=True,
              help="Length of a window in tokens; the second half of each window is scored.")
@click.option("--max-tokens", type=click.IntRange(4), help="Use at most this many tokens of the text.")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle: str, text_file: str, against: str | None, window: int, max_tokens: int | None,
            as_json: bool, **model_settings: Any) -> None:
    """Measure the perplexity of a text under BUNDLE, in the same windows as llama.cpp's own tool."""
    text = read_text(text_file)
    if against is not None and not Path(against).is_file():
        raise PeerError(f"{against}: there is no such file")
    with load_model(bundle, **{**model_settings, "context": model_settings["context"] or window}) as model:
        tokenizer = model.tokenizer
        ids = tokenizer.encode(text, add_bos=False)[:max_tokens]
        parts = windows(ids, window, tokenizer.bos_token_id if tokenizer.add_bos_token else None)
        rows = min(model.plan.logit_rows, _ROWS)
        ours = score(parts, _logits_of(model.reset, model.extend, rows), _progress("edgert"))
        used = model.threads
    result: dict[str, Any] = {"bundle": bundle, "text": text_file, "tokens": ours.tokens, "windows": len(parts),
                              "window": len(parts[0]), "perplexity": ours.perplexity, "threads": used}
    if against is not None:
        from edgert.measuring.peer import Peer
        peer = Peer(against, threads=used, context=len(parts[0]))
        theirs = score(parts, _logits_of(peer.reset, peer.forward, _ROWS), _progress("llama.cpp"))
        same = sum(a == b for a, b in zip(ours.choices, theirs.choices, strict=True))
        result["peer"] = {"name": "llama.cpp", "model": against, "perplexity": theirs.perplexity,
                          "tokens": theirs.tokens, "same_token_ids": peer.tokenize(text)[:max_tokens] == ids}
        result["ratio"] = ours.perplexity / theirs.perplexity
        result["next_token_agreement"] = same / len(ours.choices)
    if as_json:
        show_json(result)
    else:
        show(_lines(result))


def _logits_of(reset: Callable[[], None], forward: Callable[..., np.ndarray], rows: int) -> EveryLogits:
    """The logits that `score` asks for, computed at most `rows` positions at a time."""
    def logits_of(part: Sequence[int], first: int) -> Iterator[np.ndarray]:
        reset()
        forward(part[:first])
        for start in range(first, len(part), rows):
            yield forward(part[start:start + rows], every=True)

    return logits_of


def _progress(name: str) -> Any:
    def report(done: int, total: int) -> None:
        show_passing(f"{name}: window {done} of {total}" if done < total else "")

    return report


def _lines(result: dict[str, Any]) -> str:
    lines = [f"{result['tokens']} tokens scored in {result['windows']} windows of {result['window']}",
             f"edgert     perplexity {result['perplexity']:.4f}"]
    if "peer" in result:
        lines += [f"llama.cpp  perplexity {result['peer']['perplexity']:.4f}",
                  f"ratio {result['ratio']:.4f}, the same next token {100 * result['next_token_agreement']:.1f} % "
                  "of the time"]
    return "\n".join(lines)
