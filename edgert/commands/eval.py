"""`edgert eval`: perplexity, beside llama.cpp if wanted."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgert.errors import ModelError, PeerError
from edgert.measuring.perplexity import score, windows

from .loading import load_model, model_options

_ROWS = 64
"""Positions whose logits are held at once."""


@click.command("eval")
@click.argument("bundle")
@click.option("--text", "text_file", required=True, help="A file with the text.")
@click.option("--against", metavar="MODEL.gguf", help="Measure llama.cpp on this file too, on the same tokens.")
@click.option("--window", type=click.IntRange(4, 1 << 20), default=512, show_default=True,
              help="Tokens in a window; the second half of each is scored.")
@click.option("--max-tokens", type=click.IntRange(4), help="Take no more than so many tokens of the text.")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle: str, text_file: str, against: str | None, window: int, max_tokens: int | None, threads: int | None,
            context: int | None, prefill_chunk: int, kv_type: str | None, as_json: bool) -> None:
    """Measure the perplexity of a text under BUNDLE, windows and scoring as llama.cpp's own tool does it."""
    try:
        text = Path(text_file).read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{text_file}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{text_file}: is not UTF-8 text") from None
    if against is not None and not Path(against).is_file():
        raise PeerError(f"{against}: there is no such file")
    with load_model(bundle, threads=threads, context=context or window, prefill_chunk=prefill_chunk,
                    kv_type=kv_type) as model:
        tokenizer = model.tokenizer
        ids = tokenizer.encode(text, add_bos=False)[:max_tokens]
        parts = windows(ids, window, tokenizer.bos_token_id if tokenizer.add_bos_token else None)

        def logits_of(part: Sequence[int], first: int) -> Iterator[np.ndarray]:
            model.reset()
            model.extend(part[:first])
            for start in range(first, len(part), _ROWS):
                yield model.extend(part[start:start + _ROWS], every=True)

        ours = score(parts, logits_of, _progress("edgert"))
        used = model.threads
    result: dict[str, Any] = {"bundle": bundle, "text": text_file, "tokens": ours.tokens, "windows": len(parts),
                              "window": len(parts[0]), "perplexity": ours.perplexity, "threads": used}
    if against is not None:
        from edgert.measuring.peer import Peer
        peer = Peer(against, threads=used, context=len(parts[0]))

        def peer_logits_of(part: Sequence[int], first: int) -> Iterator[np.ndarray]:
            peer.reset()
            peer.forward(part[:first])
            for start in range(first, len(part), _ROWS):
                yield peer.forward(part[start:start + _ROWS], every=True)

        theirs = score(parts, peer_logits_of, _progress("llama.cpp"))
        same = sum(a == b for a, b in zip(ours.choices, theirs.choices, strict=True))
        result["peer"] = {"name": "llama.cpp", "model": against, "perplexity": theirs.perplexity,
                          "tokens": theirs.tokens, "same_token_ids": peer.tokenize(text)[:max_tokens] == ids}
        result["ratio"] = ours.perplexity / theirs.perplexity
        result["next_token_agreement"] = same / len(ours.choices)
    click.echo(json.dumps(result) if as_json else _lines(result))


def _progress(name: str) -> Any:
    def report(done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{name}: window {done} of {total}", err=True, nl=done == total)
    return report


def _lines(result: dict[str, Any]) -> str:
    lines = [f"{result['tokens']} tokens scored in {result['windows']} windows of {result['window']}",
             f"edgert     perplexity {result['perplexity']:.4f}"]
    if "peer" in result:
        lines += [f"llama.cpp  perplexity {result['peer']['perplexity']:.4f}",
                  f"ratio {result['ratio']:.4f}, the same next token {100 * result['next_token_agreement']:.1f} % "
                  "of the time"]
    return "\n".join(lines)
