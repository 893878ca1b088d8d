"""`edgert run`: one prompt, one answer."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from edgert.bundle import Bundle
from edgert.engine.retention import STOP
from edgert.model import Model
from edgert.opening import DEFAULT_CONTEXT
from edgert.process import peak_rss_bytes
from edgert.terminal import AnswerWriter, read_standard_input, show, show_json

from .bundle_argument import BUNDLE
from .gguf import Foreign, resolve
from .loading import (
    FOLD,
    TEXT,
    load_model,
    model_options,
    read_text,
    sampling_options,
    think_option,
    thinking_asked,
)
from .price import tell_price
from .statistics import flash_use, left_out_use, speculation_use

_TEMPLATE_TOKENS, _CONTEXT_STEP = 128, 256
"""Tokens that a chat template may add; contexts are multiples of the second number."""


@click.command("run")
@click.argument("bundle", type=BUNDLE)
@click.option("-p", "--prompt", type=TEXT, help="The prompt.  [default: standard input]")
@click.option("-f", "--prompt-file", type=click.Path(), help="Read the prompt from this file.")
@click.option("--chat", is_flag=True, help="Send the prompt as a user's message in the model's chat template.")
@click.option("--system", type=TEXT, help="System message; only with --chat.")
@think_option
@click.option("-n", "--max-tokens", type=click.IntRange(0), help="Generate at most this many tokens.")
@sampling_options(temperature=0.0)
@click.option("--stop", multiple=True, type=TEXT, help="Text that ends the answer; may be given several times.")
@click.option("--logprobs", type=click.IntRange(0, 1000),
              help="With --json: the log-probabilities of this many most likely tokens at each step.")
@click.option("--schema", "schema_file", type=click.Path(), metavar="FILE",
              help="The answer is JSON that this JSON schema allows.")
@click.option("--regex", type=TEXT, help="The answer is a text that this regular expression (of Rust's kind) matches.")
@click.option("--grammar", "grammar_file", type=click.Path(), metavar="FILE",
              help="The answer follows this grammar, in llguidance's variant of Lark.")
@click.option("--ignore-eos", is_flag=True, help="Keep generating when the model ends its answer.")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
def command(bundle: str, prompt: str | None, prompt_file: str | None, chat: bool, system: str | None,
            think: str | None, max_tokens: int | None, sampling: dict[str, Any], stop: tuple[str, ...],
            logprobs: int | None, schema_file: str | None, regex: str | None, grammar_file: str | None,
            ignore_eos: bool, as_json: bool, **model_settings: Any) -> None:
    """Generate text from a prompt with the model in BUNDLE; by default greedily, always the most likely token.

    The prompt is continued as it is: names of special tokens in it, such as <|im_start|>, become those tokens. With
    --chat it is a user's message, in which such names are plain text.
    """
    text = _prompt(prompt, prompt_file)
    if system is not None and not chat:
        raise click.UsageError("--system goes with --chat")
    if think is not None and not chat:
        raise click.UsageError("--think goes with --chat")
    form = {"schema": schema_file and read_text(schema_file), "regex": regex,
            "grammar": grammar_file and read_text(grammar_file)}
    started, found = time.perf_counter(), resolve(bundle)
    if model_settings["context"] is None and max_tokens is not None and model_settings["kv_policy"] in (None, STOP):
        model_settings["context"] = None if isinstance(found, Foreign) else _enough_context(found, text, max_tokens)
    with load_model(found, structured=any(form.values()), max_loss=sampling["max_loss"], **model_settings) as model:
        loaded = time.perf_counter()
        tell_price(model, sampling["max_loss"])
        settings: dict[str, Any] = {
            "max_tokens": max_tokens, **sampling, "stop": stop, "logprobs": logprobs, "ignore_eos": ignore_eos, **form}
        if chat:
            messages = [{"role": "system", "content": system}] if system is not None else []
            generation = model.chat([*messages, {"role": "user", "content": text}], thinking=thinking_asked(think),
                                    **settings)
        else:
            generation = model.generate(text, **settings)
        pieces, reason = [], None
        writer = AnswerWriter(think or FOLD, "--think show writes them")
        for piece in generation:
            pieces.append(piece)
            reason = piece.finish_reason
            if not as_json:
                writer.write(piece.text, piece.thinking)
        if not as_json:
            writer.end()
            show()
            return
        statistics = generation.statistics
        result: dict[str, Any] = {
            "text": "".join(piece.text for piece in pieces),
            **({"thinking": generation.thinking} if generation.thinking else {}), "token_ids": generation.token_ids,
            "finish_reason": reason, "prompt_tokens": statistics.prompt_tokens,
            "load_s": round(loaded - started, 4), "first_token_s": round(statistics.first_token_s, 4),
            "prefill_tok_s": round(statistics.prefill_tok_s, 2), "decode_tok_s": round(statistics.decode_tok_s, 2),
            "threads": model.threads, "peak_rss_bytes": peak_rss_bytes()}
        if isinstance(model, Model) and model.plan.disk is not None:
            result["flash"] = flash_use(model, statistics)
        if isinstance(model, Model) and model.left_out is not None:
            result["left_out"] = left_out_use(model)
        if statistics.guessed:
            result["speculation"] = speculation_use(statistics)
        if logprobs is not None:
            result["logprobs"] = [{"token_id": p.token_id, "logprob": p.logprob, "top": p.top_logprobs}
                                  for p in pieces if p.token_id is not None]
        show_json(result)


def _enough_context(bundle: Path, text: str, max_tokens: int) -> int | None:
    """A context just long enough for this prompt and answer, None if that is not less than the default. Memory that it
    does not take is used for weights."""
    room = len(text.encode()) + _TEMPLATE_TOKENS + max_tokens  # a token is a byte at least
    room = -(-room // _CONTEXT_STEP) * _CONTEXT_STEP
    with Bundle(bundle) as opened:
        most = opened.header.config.max_position_embeddings
    return room if room < min(DEFAULT_CONTEXT, most) else None


def _prompt(prompt: str | None, prompt_file: str | None) -> str:
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("give --prompt or --prompt-file, not both")
    if prompt is not None:
        return prompt
    if prompt_file is not None:
        return read_text(prompt_file)
    if sys.stdin.isatty():
        raise click.UsageError("give a prompt: -p TEXT, -f FILE, or on standard input")
    return read_standard_input()
