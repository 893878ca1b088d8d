"""`edgert bench`: speed, also against llama.cpp."""

from pathlib import Path
from typing import Any

import click

from edgert.bundle import Bundle, Header
from edgert.errors import PeerError
from edgert.kernels.pages import CACHE_TYPES
from edgert.measuring.bench import DEFAULT_PROMPT, NO_LOSS, NO_SPECULATION, bench
from edgert.opening import load_library, read_text
from edgert.process import default_threads
from edgert.terminal import show, show_json

from .bundle_argument import BUNDLE
from .gguf import bundle_of
from .loading import TEXT, compile_progress
from .price import left_out_text
from .shares import SHARE


@click.command("bench")
@click.argument("bundle", type=BUNDLE)
@click.option("--against", metavar="MODEL.gguf", help="Also measure llama.cpp on this file, in alternating runs.")
@click.option("-t", "--threads", type=click.IntRange(1, 256),
              help="Number of threads, for both.  [default: one per physical core]")
@click.option("-m", "--memory", metavar="SIZE",
              help="Memory that edgert may use, like 600M; llama.cpp is not limited. With it edgert is measured with "
              "speculation and without, otherwise without.  [default: most of what is free]")
@click.option("-r", "--runs", type=click.IntRange(1, 1000), default=5, show_default=True,
              help="Runs of each engine, after a warm-up run; the medians are shown.")
@click.option("-n", "--decode", type=click.IntRange(4, 4096), default=64, show_default=True, help="Tokens to generate.")
@click.option("--prefill", type=click.IntRange(0, 4096), default=256, show_default=True,
              help="Tokens of the prompt whose prefill is measured, 0 for none.")
@click.option("-c", "--context-tokens", type=click.IntRange(1, 1 << 20), metavar="N",
              help="Decode after N tokens (the prompt, repeated). Each run computes them, which is the prefill that is "
              "measured; with --prefill 0 they are computed once.")
@click.option("--kv-type", type=click.Choice(list(CACHE_TYPES)),
              help="Type of both key-value caches.  [default: f16]")
@click.option("--max-loss", type=SHARE, default=0.0, metavar="PERCENT",
              help="With --memory, or a mixture of experts: let answers be up to so much less likely a token, like 3%, "
              "and also measure without that.")
@click.option("-p", "--prompt", type=TEXT, default=DEFAULT_PROMPT, help="The prompt.  [default: a Python function]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle: str, against: str | None, threads: int | None, memory: str | None, runs: int, decode: int,
            prefill: int, context_tokens: int | None, kv_type: str | None, max_loss: float, prompt: str,
            as_json: bool) -> None:
    """Measure how fast BUNDLE generates tokens (decode) and processes a prompt (prefill).

    Each engine runs in a process of its own. llama.cpp is measured with repacked and with memory-mapped weights, with
    --context-tokens also with and without flash attention, and the best result counts.
    """
    bundle = str(bundle_of(bundle))
    with Bundle(bundle) as opened:
        if max_loss:
            _tell_loss(opened.header, max_loss, memory)
        load_library(compile_progress)  # before the processes that measure do
        ids = read_text(opened).tokenizer.encode(prompt)
    if not ids:
        raise click.UsageError("the prompt is empty")
    if against is not None and not Path(against).is_file():
        raise PeerError(f"{against}: there is no such file")

    def report(name: str, run: int, result: dict[str, Any]) -> None:
        label = name if name in ("edgert", NO_SPECULATION, NO_LOSS) else f"llama.cpp, {name}"
        prefilled = f", prefill {result['prefill_tok_s']:8.2f} tok/s" if "prefill_tok_s" in result else ""
        show(f"run {run + 1}: {label:37} decode {result['decode_tok_s']:7.2f} tok/s{prefilled}", err=True)

    result = bench(bundle, ids, against=against, threads=threads or default_threads(), runs=runs, decode=decode,
                   prefill=prefill, context=context_tokens, memory=memory, kv_type=kv_type, max_loss=max_loss,
                   report=report)
    if as_json:
        show_json(result)
    else:
        show(_table(result))


def _tell_loss(header: Header, max_loss: float, memory: str | None) -> None:
    """Tell the user which experts or neurons are left out. Raises UsageError where nothing would be lost."""
    changes = memory is not None or header.left_out_for(max_loss) is not None
    if not changes and not header.config.selective:
        raise click.UsageError("--max-loss goes with --memory: with all weights in memory nothing is drafted")
    if not changes:
        raise click.UsageError(f"{left_out_text(header, max_loss)}. Without --memory it changes nothing else")
    if header.config.selective:
        show(left_out_text(header, max_loss), err=True)


def _table(result: dict[str, Any]) -> str:
    decode = f"decode after {result['prompt_tokens']}"
    rows = [(decode, "decode_tok_s", "tok/s", 1.0), (f"prefill of {result['prefill_tokens']}", "prefill_tok_s",
             "tok/s", 1.0), (f"first token after {result['prompt_tokens']}", "first_token_s", "ms", 1e3),
            ("peak memory", "peak_rss_bytes", "MB", 1e-6)]
    others: list[tuple[str, dict[str, Any], dict[str, float]]] = []
    for key, name in (("no_loss", "no loss"), ("no_speculation", "no speculation")):
        if other := result.get(key):
            others.append((name, other, other["ratio"]))
    if peer := result.get("peer"):
        others.append(("llama.cpp", peer, result["ratio"]))
    lines = [f"{'median of ' + str(result['runs']) + ', ' + str(result['threads']) + ' threads':28} {'edgert':>16}"
             + "".join(f" {name:>16} {'ratio':>7}" for name, _, _ in others)]
    for title, field, unit, factor in rows:
        if field in result:
            lines.append(f"{title:28} {result[field] * factor:10.2f} {unit:5}" + "".join(
                f" {other[field] * factor:10.2f} {unit:5} {ratio[field]:7.2f}" for _, other, ratio in others))
    if "no_speculation" in result:
        lines.append(f"{'tokens a pass':28} {result['tokens_per_pass']:10.2f}")
    return "\n".join(lines)
