"""`edgert eval`: perplexity, multiple-choice questions and prompts, also against llama.cpp."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from edgert.errors import PeerError
from edgert.measuring.accuracy import Accuracy
from edgert.measuring.perplexity import EveryLogits, Score, score, windows
from edgert.measuring.prompts import Prompt, answer_to, normalized, read_prompts, tokenize_prompt
from edgert.measuring.questions import (
    Question,
    Scores,
    TokenizedQuestion,
    read_questions,
    score_question,
    tokenize_question,
)
from edgert.model import Model
from edgert.terminal import show, show_json, show_passing

from .bundle_argument import BUNDLE
from .gguf import can_leave_out
from .loading import load_bundle, model_options, read_text
from .price import tell_price
from .shares import SHARE, SHARES
from .statistics import left_out_use

_ROWS = 64
"""Positions whose logits are in memory at once, at most."""
_CONTEXT = 512
"""Tokens that a question, or a prompt with its answer, may have, if not asked otherwise."""


class _Engine(NamedTuple):
    """What is measured. reset: forgets all tokens but the first so many. rows: whose logits are asked for at once."""

    name: str
    reset: Callable[..., None]
    forward: Callable[..., np.ndarray]
    rows: int


@click.command("eval")
@click.argument("bundles", metavar="BUNDLE...", type=BUNDLE, nargs=-1, required=True)
@click.option("--modes", is_flag=True,
              help="Compare ways to run BUNDLE, and other bundles of the same model: what is lost, how fast each is "
                   "with --memory SIZE,SIZE.... Texts, questions and prompts are those that come with edgert, if none "
                   "are given.")
@click.option("--predictors", is_flag=True,
              help="Compare ways to guess which neurons matter for a token: how many they find, what is read, what is "
                   "lost where the others are left out. On --text, or on two that come with edgert.")
@click.option("--shares", type=SHARES, metavar="PERCENT,...",
              help="With --predictors: shares of the neurons that are computed.  [default: 70%,50%,30%]")
@click.option("--text", "text_files", metavar="FILE", multiple=True,
              help="Measure the perplexity of this text; with --modes and --predictors also of several.")
@click.option("--questions", "questions_file", metavar="FILE|shipped",
              help="Multiple-choice questions, JSON lines of \"question\", \"choices\" and \"answer\" (an index), or "
                   "the 200 that come with edgert.")
@click.option("--prompts", "prompts_file", metavar="FILE|shipped",
              help="Prompts with one short answer, JSON lines of \"prompt\" and \"answer\" (a text, or several "
                   "in a list), or the 50 that come with edgert.")
@click.option("--against", metavar="MODEL.gguf", help="Also measure llama.cpp on this file, with the same tokens: "
              "--text and --questions.")
@click.option("--window", type=click.IntRange(4, 1 << 20),
              help="Length of a window in tokens; the second half of each window is scored.  "
                   "[default: 512; with --modes 256]")
@click.option("--max-tokens", type=click.IntRange(4), help="Use at most this many tokens of the text.")
@click.option("--max-loss", type=SHARE, default=0.0, metavar="PERCENT",
              help="Of the answers to --prompts, as of edgert run; of a mixture of experts, which leaves some out, of "
                   "the others too.")
@click.option("--tokens", type=click.IntRange(4, 4096), metavar="N",
              help="With --modes: tokens of each answer that speed is measured with.  [default: 48]")
@click.option("-r", "--runs", type=click.IntRange(1, 1000), metavar="N",
              help="With --modes: answer so many times; the median speed counts.  [default: 1]")
@click.option("--png", metavar="FILE", type=click.Path(dir_okay=False),
              help="With --modes: also draw them as a picture; needs pip install 'edgert[plot]'.")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with the pick for every question.")
def command(bundles: tuple[str, ...], modes: bool, predictors: bool, shares: tuple[float, ...] | None,
            text_files: tuple[str, ...], questions_file: str | None, prompts_file: str | None, against: str | None,
            window: int | None, max_tokens: int | None, max_loss: float, tokens: int | None, runs: int | None,
            png: str | None, as_json: bool, **model_settings: Any) -> None:
    """Measure how good BUNDLE is, in one way or several.

    --text: the text's perplexity, in the same windows as llama.cpp's own tool.

    --questions: which choice is the likeliest after the question and a space, by the sum of its tokens'
    log-probabilities (accuracy), and by that sum per byte of the choice, as lm-evaluation-harness does.

    --prompts: whether the greedy answer is the right one, exactly. A prompt is a user's message where the bundle has a
    chat template. Of the answer counts its first line, without regard to case, white space around it and punctuation
    (.!?,;:) at its end.
    """
    if predictors:
        from .eval_predictors import eval_predictors
        _refuse("--predictors", modes=modes, questions=questions_file, prompts=prompts_file, against=against,
                window=window, max_loss=max_loss, tokens=tokens, runs=runs, png=png, **{
                    key: value for key, value in model_settings.items() if key not in ("prefill_chunk", "speculation")})
        if len(bundles) > 1:
            raise click.UsageError("--predictors takes one bundle")
        eval_predictors(bundles[0], text_files, shares or (0.7, 0.5, 0.3), max_tokens, as_json)
        return
    if modes:
        from .eval_modes import eval_modes
        _refuse("--modes", shares=shares, against=against, max_loss=max_loss, **{
            key: model_settings.pop(key) for key in ("kv_type", "kv_policy", "kv_memory", "trace")})
        memory = model_settings.pop("memory")
        eval_modes(bundles, text_files, questions_file, prompts_file, window, max_tokens, memory, png,
                   tokens or 48, runs or 1, as_json, model_settings)
        return
    if len(bundles) > 1 or len(text_files) > 1:
        raise click.UsageError("several bundles go with --modes, several texts with --modes and --predictors")
    if shares:
        raise click.UsageError("--shares goes with --predictors")
    if {tokens, runs, png} != {None}:
        raise click.UsageError("--tokens, --runs and --png go with --modes")
    (bundle,), text_file, window = bundles, next(iter(text_files), None), window or 512
    if text_file is None and questions_file is None and prompts_file is None:
        raise click.UsageError("give --text, --questions or --prompts, or several of them, or --modes or --predictors")
    if against is not None and text_file is None and questions_file is None:
        raise click.UsageError("--against goes with --text or --questions")
    if max_loss and prompts_file is None and not can_leave_out(bundle):
        raise click.UsageError("--max-loss goes with --prompts: it changes answers, not how likely a text is")
    text = read_text(text_file) if text_file is not None else None
    questions = read_questions(questions_file) if questions_file is not None else []
    prompts = read_prompts(prompts_file) if prompts_file is not None else []
    if against is not None and not Path(against).is_file():
        raise PeerError(f"{against}: there is no such file")
    context = max(window if text is not None else 0, _CONTEXT if questions or prompts else 0)
    with load_bundle(bundle, max_loss=max_loss, **{
            **model_settings, "context": model_settings["context"] or context}) as model:
        if max_loss and model.header.config.experts:
            tell_price(model, max_loss, answers=prompts_file is not None)
        ours = _Engine("edgert", model.reset, model.extend, min(model.plan.logit_rows, _ROWS))
        tokenizer = model.tokenizer
        ids = tokenizer.encode(text, add_bos=False)[:max_tokens] if text is not None else []
        bos = tokenizer.bos_token_id if tokenizer.add_bos_token else None
        parts = windows(ids, window, bos) if text is not None else []
        tokenized = [tokenize_question(question, tokenizer, model.context) for question in questions]
        asked = [tokenize_prompt(prompt, model) for prompt in prompts]
        result: dict[str, Any] = {"bundle": bundle, "threads": model.threads}
        if text is not None:
            surprise = _surprise(ours, parts)
            result |= {"text": text_file, "tokens": surprise.tokens, "windows": len(parts), "window": len(parts[0]),
                       "perplexity": surprise.perplexity}
        if questions:
            scores = _scores(ours, questions, tokenized)
            result["questions"] = {"file": questions_file, **_accuracies(questions, scores)}
        if prompts:
            result["prompts"] = {"file": prompts_file, **_matches(prompts, asked, model, max_loss)}
        if model.left_out is not None:
            result["left_out"] = left_out_use(model)
    if against is not None:
        from edgert.measuring.peer import Peer
        longest = max([*map(len, parts), *(question.computed for question in tokenized)])
        peer = Peer(against, threads=result["threads"], context=longest)
        theirs = _Engine("llama.cpp", peer.reset, peer.forward, _ROWS)
        who = {"name": theirs.name, "model": against}
        if text is not None:
            peers = _surprise(theirs, parts)
            result["peer"] = {**who, "perplexity": peers.perplexity, "tokens": peers.tokens,
                              "same_token_ids": peer.tokenize(text)[:max_tokens] == ids}
            result["ratio"] = surprise.perplexity / peers.perplexity
            result["next_token_agreement"] = _share_alike(surprise.choices, peers.choices)
        if questions:
            peer_scores = _scores(theirs, questions, tokenized)
            result["questions"] |= {
                "peer": {**who, **_accuracies(questions, peer_scores)},
                "agreement": _share_alike([s.pick for s in scores], [s.pick for s in peer_scores]),
                "agreement_norm": _share_alike([s.pick_by_bytes for s in scores],
                                               [s.pick_by_bytes for s in peer_scores])}
    if as_json:
        show_json(result)
    else:
        show("\n".join(_lines(result)))


def _refuse(what: str, **options: Any) -> None:
    """Raises UsageError for options that are given and do not go with `what`."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise click.UsageError(f"{' and '.join(given)} do{'es' * (len(given) == 1)} not go with {what}")


def _surprise(engine: _Engine, parts: Sequence[Sequence[int]]) -> Score:
    """The score of a text's windows."""
    return score(parts, _logits_of(engine), lambda done, total: _progress(engine, "window", done, total))


def _logits_of(engine: _Engine) -> EveryLogits:
    """The logits that `score` asks for, computed at most `rows` positions at a time."""
    def logits_of(part: Sequence[int], first: int) -> Iterator[np.ndarray]:
        engine.reset()
        engine.forward(part[:first])
        for start in range(first, len(part), engine.rows):
            yield engine.forward(part[start:start + engine.rows], every=True)

    return logits_of


def _scores(engine: _Engine, questions: Sequence[Question], tokens: Sequence[TokenizedQuestion]) -> list[Scores]:
    found = []
    for question, each in zip(questions, tokens, strict=True):
        found.append(score_question(question, each, engine.reset, engine.forward, engine.rows))
        _progress(engine, "question", len(found), len(questions))
    return found


def _accuracies(questions: Sequence[Question], scores: Sequence[Scores]) -> dict[str, Any]:
    """Names are lm-evaluation-harness's."""
    pairs = list(zip(questions, scores, strict=True))
    by_sum = Accuracy.of([s.pick == q.answer for q, s in pairs])
    by_bytes = Accuracy.of([s.pick_by_bytes == q.answer for q, s in pairs])
    return {"count": len(pairs), "acc": by_sum.value, "acc_stderr": by_sum.error,
            "acc_norm": by_bytes.value, "acc_norm_stderr": by_bytes.error,
            "each": [{"answer": q.answer, "pick": s.pick, "pick_norm": s.pick_by_bytes,
                      "log_likelihoods": s.log_likelihoods} for q, s in pairs]}


def _matches(prompts: Sequence[Prompt], asked: Sequence[list[int]], model: Model, max_loss: float) -> dict[str, Any]:
    each: list[dict[str, Any]] = []
    for prompt, ids in zip(prompts, asked, strict=True):
        answer = answer_to(ids, model, max_loss)
        each.append({"answer": answer, "right": normalized(answer) in prompt.answers})
        show_passing(f"edgert: prompt {len(each)} of {len(prompts)}" if len(each) < len(prompts) else "")
    match = Accuracy.of([answered["right"] for answered in each])
    return {"count": len(each), "exact_match": match.value, "exact_match_stderr": match.error, "each": each}


def _share_alike(ours: Sequence[int], theirs: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)


def _progress(engine: _Engine, what: str, done: int, total: int) -> None:
    show_passing(f"{engine.name}: {what} {done} of {total}" if done < total else "")


def _lines(result: dict[str, Any]) -> Iterator[str]:
    if "text" in result:
        yield f"{result['tokens']} tokens scored in {result['windows']} windows of {result['window']}"
        yield f"edgert     perplexity {result['perplexity']:.4f}"
        if "peer" in result:
            yield f"llama.cpp  perplexity {result['peer']['perplexity']:.4f}"
            yield (f"ratio {result['ratio']:.4f}, the same next token {100 * result['next_token_agreement']:.1f} % "
                   "of the time")
    if "questions" in result:
        questions = result["questions"]
        yield f"{questions['count']} question{'s' * (questions['count'] != 1)}: {_accuracy_text(questions)}"
        if "peer" in questions:
            yield f"llama.cpp: {_accuracy_text(questions['peer'])}"
            yield (f"the same pick for {100 * questions['agreement']:.1f} % of the questions, per byte for "
                   f"{100 * questions['agreement_norm']:.1f} %")
    if "prompts" in result:
        prompts = result["prompts"]
        yield (f"{prompts['count']} prompt{'s' * (prompts['count'] != 1)}: "
               f"{_percent(prompts, 'exact_match')} answered exactly")


def _accuracy_text(found: dict[str, Any]) -> str:
    return f"accuracy {_percent(found, 'acc')}, per byte {_percent(found, 'acc_norm')}"


def _percent(found: dict[str, Any], name: str) -> str:
    return f"{100 * found[name]:.1f} ± {100 * found[name + '_stderr']:.1f} %"
