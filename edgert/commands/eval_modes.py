"""`edgert eval --modes`: what each mode of a model costs and brings, in one table."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgert.errors import ModelError
from edgert.measuring.json_lines import SHIPPED
from edgert.measuring.modes import MIB, What, by_budget, measure_modes, modes_of, shipped_texts
from edgert.measuring.prompts import read_prompts
from edgert.measuring.questions import read_questions
from edgert.opening import load_library
from edgert.sizes import parse_size
from edgert.terminal import show, show_json, show_passing

from .gguf import bundle_of
from .loading import compile_progress, read_text
from .modes_chart import letters_of, percent, picture, scatter
from .plan_chart import require_matplotlib

WINDOW = 256


def eval_modes(bundles: Sequence[str], texts: Sequence[str], questions: str | None, prompts: str | None,
               window: int | None, max_tokens: int | None, memory: str | None, png: str | None, tokens: int, runs: int,
               as_json: bool, settings: Mapping[str, Any]) -> None:
    """Measure the modes and show them. Raises EdgertError for what cannot be read, before anything is measured."""
    if png:
        require_matplotlib()
        if not Path(png).absolute().parent.is_dir():
            raise ModelError(f"{png}: there is no such folder to write a picture into")
    budgets = sorted({parse_size(size) for size in memory.split(",")}) if memory else []
    paths = [str(bundle_of(bundle)) for bundle in bundles]
    if len(set(map(str, map(Path.resolve, map(Path, paths))))) < len(paths):
        raise ModelError("one bundle is given twice; give variants of it, or one")
    what = What({Path(text).name: read_text(text) for text in texts} or shipped_texts(), questions or SHIPPED,
                prompts or SHIPPED, window or WINDOW, max_tokens, tokens, runs)
    if len(texts) != len(what.texts) and texts:
        raise ModelError("two of the texts have the same file name, by which the table would tell them apart; rename "
                         "one")
    read_questions(what.questions)
    read_prompts(what.prompts)
    load_library(compile_progress)  # before the processes that measure do
    try:
        result = measure_modes(modes_of(paths), budgets, what, settings, show_passing)
    finally:
        show_passing()
    if png:
        picture(png, ", ".join(Path(path).name for path in paths), result["modes"])
    if as_json:
        show_json(result)
    else:
        show("\n".join(_lines(result)))


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    modes = result["modes"]
    letters, width = letters_of(modes), max(len(mode["name"]) for mode in modes)
    measured = [mode for mode in modes if "loss" in mode]
    yield (f"{'':{width + 2}} {'loss':>8}" + "".join(f" {name[:12]:>12}" for name in result["texts"])
           + f" {'agreement':>10} {'questions':>13} {'prompts':>13} {'as exact':>9}")
    for mode in measured:
        texts = "".join(f" {mode['perplexity'][name]:12.3f}" if "perplexity" in mode else f" {'–':>12}"
                        for name in result["texts"])
        yield (f"{letters[mode['name']]} {mode['name']:{width}} {percent(mode['loss']):>8}{texts} "
               f"{percent(mode['agreement']):>10} {_accuracy(mode.get('questions')):>13} "
               f"{_accuracy(mode.get('prompts')):>13} {percent(mode.get('same_answers'), 0):>9}")
    for budget, found in by_budget(modes):
        yield ""
        yield (f"{f'{budget / MIB:.0f} MiB':{width + 2}} {'loss':>8} {'tokens/s':>9} {'read a token':>13} "
               f"{'tokens a pass':>14}")
        for mode, at in found:
            yield (f"{letters[mode['name']]} {mode['name']:{width}} {percent(at['loss']):>8} {at['tok_s']:9.1f} "
                   f"{at['bytes_a_token'] / 1e6:10.1f} MB {at['tokens_a_pass']:14.2f}{'  *' if at['pareto'] else ''}")
    yield ""
    yield scatter(modes)
    yield ""
    yield from _notes(result)


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    modes = result["modes"]
    yield "* and capital letters: at this budget none loses less and is faster (Pareto front)."
    leaves_out = any(mode["max_loss"] and mode.get("loss_of") == "texts" for mode in modes)
    yield ("loss: by how much a token is less likely than in the exact mode. Of caches"
           f"{', experts or neurons left out' * leaves_out} and other bundles: the texts' perplexity\n(and agreement: "
           "the share of their tokens for which the same one is likeliest).")
    if any(mode.get("loss_of") == "answers" for mode in modes):
        yield ("Of max-loss: as the model counts it for its own answers, the most at any budget (agreement: the share "
               "of their tokens\nthat the model would choose itself, the least). The perplexity of a given text and "
               "the questions are those of the exact mode.")
    missing: dict[str, list[str]] = {}
    for mode in modes:
        there = {at["budget"] for at in mode["budgets"]}
        if budgets := [f"{budget / MIB:.0f} MiB" for budget in result["budgets"] if budget not in there]:
            missing.setdefault(", ".join(budgets), []).append(mode["name"])
    for budgets_text, names in missing.items():
        yield (f"Not measured at {budgets_text}, where nothing is drafted, which takes a budget that holds enough of "
               f"the weights\nfor a draft, and not all{', and nothing can be left out for that' * leaves_out}: "
               f"{', '.join(names)}.")


def _accuracy(found: Mapping[str, Any] | None) -> str:
    return "–" if found is None else f"{100 * found['right']:.1f} ± {100 * found['stderr']:.1f} %"
