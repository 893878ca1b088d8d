"""Modes of a model, and variants of it, side by side: what each loses, what it reads, how fast it is.

What a mode loses is one number for all of them, by how much a token becomes less likely, but it is measured in one of
two ways. Another type of key-value cache, or another bundle, changes how likely a given text is: there it is the
perplexity of texts, relative to that of the first bundle's exact mode. `max_loss` does not change that; it changes
which answers are given: there it is the account of the answers themselves (generation/lenience.py), as the model sees
them. Of a mixture it leaves out experts, of a sparse model with predictors neurons, which changes how likely a text is,
and that alone is measured. Agreement likewise: the share of tokens, after the same tokens, that are what the exact mode
would choose; of texts, or of the mode's own answers.

Perplexity flatters what is nearly right (Zhou et al. 2024, "Sirius"), so there are also questions with one right choice
and prompts with one right answer. Each mode is measured in a process of its own, at each budget in another.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from .accuracy import Accuracy
from .child import Child

LOSSES = (0.01, 0.03, 0.05, 0.1)
CACHES = ("q8", "q4")
TEXTS = ("prose", "code")
"""Two texts that come with edgert."""
SPEED_PROMPTS = (
    "Write a Python function that counts how often each word stands in a text file, and explain its steps.",
    "Explain to a curious adult why the sky is blue and the evening sun is red.",
    "Write a short letter to a friend who is about to move to the sea.",
)
CONTEXT = 512
MIB = 1 << 20


Found = list[tuple[Mapping[str, Any], dict[str, Any]]]
"""Modes, each with what was measured of it at one budget."""


class Mode(NamedTuple):
    """bundle: its path. kv_type: None for the bundle's default."""

    name: str
    bundle: str
    kv_type: str | None = None
    max_loss: float = 0.0


class What(NamedTuple):
    """What is measured, and how much of it. texts: by name. questions, prompts: files, as json_lines reads them.
    tokens: of each answer that speed is measured with."""

    texts: Mapping[str, str]
    questions: str
    prompts: str
    window: int
    max_tokens: int | None
    tokens: int
    runs: int


def modes_of(bundles: Sequence[str]) -> list[Mode]:
    """The first bundle exact, with max-loss and with smaller caches, then the other bundles as they are. Names tell
    bundles apart where there are several."""
    names = [Path(bundle).stem for bundle in bundles]
    if len(set(names)) < len(names):
        names = list(bundles)
    first = bundles[0]
    prefix = f"{names[0]}, " if len(bundles) > 1 else ""
    return [Mode(f"{prefix}exact", first),
            *(Mode(f"{prefix}max-loss {100 * loss:g} %", first, max_loss=loss) for loss in LOSSES),
            *(Mode(f"{prefix}{kind} cache", first, kv_type=kind) for kind in CACHES),
            *(Mode(name, bundle) for name, bundle in zip(names[1:], bundles[1:], strict=True))]


def shipped_texts() -> dict[str, str]:
    return {name: files(__package__).joinpath(f"{name}.txt").read_text(encoding="utf-8") for name in TEXTS}


def measure_modes(modes: Sequence[Mode], budgets: Sequence[int], what: What, settings: Mapping[str, Any],
                  progress: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Measure modes, of which the first is the exact one that all are compared with.

    budgets: in bytes; if there are none, three of the first bundle (`_between`). settings: keywords of `edgert.load`.
    Returns `budgets`, `threads`, `texts`, and `modes`: of each its name, bundle, kv_type, max_loss, loss_of ("texts" or
    "answers"), what `_quality` says or what of that is the answers', and `budgets`, what `_speed` says of each. Raises
    EdgertError.
    """
    settings = {"context": CONTEXT, **{key: value for key, value in settings.items() if value is not None}}
    found: list[dict[str, Any]] = [{**mode._asdict()} for mode in modes]
    texts: list[dict[str, Any]] = []
    answers: list[list[str]] = []
    threads, leaves_out = 0, False
    for mode, row in zip(modes, found, strict=True):
        if mode.max_loss and not leaves_out:
            continue
        with _MeasuredMode(mode, settings) as (child, about):
            if mode.max_loss and about["left_out"] is None:
                continue
            threads = about["threads"]
            leaves_out |= about["leaves_out"]
            if not budgets:
                budgets = _between(**child.ask({"what": "budgets"}))
            scores: dict[str, Any] = {}
            for name, text in what.texts.items():
                progress(f"{mode.name}: {name}")
                scores[name] = child.ask({"what": "text", "name": name, "text": text, "window": what.window,
                                          "max_tokens": what.max_tokens})
            progress(f"{mode.name}: questions")
            questions = child.ask({"what": "questions", "file": what.questions})
            progress(f"{mode.name}: prompts")
            prompts = child.ask({"what": "prompts", "file": what.prompts, "max_loss": 0.0})
        if not texts:
            texts.append(scores)
        row |= {"loss_of": "texts", **_quality(scores, texts[0]), "questions": _share(questions["right"])}
        _add_prompts(row, prompts, answers)
    for mode, row in zip(modes, found, strict=True):
        row["budgets"] = []
        for budget in budgets:
            progress(f"{mode.name}: speed at {budget / MIB:.0f} MiB")
            with _MeasuredMode(mode, {**settings, "memory": budget}) as (child, about):
                if mode.max_loss and not about["drafts"] and about["left_out"] is None:
                    continue
                for_guesses = 0.0 if about["left_out"] else mode.max_loss
                run = child.ask({"what": "speed", "prompts": SPEED_PROMPTS, "tokens": what.tokens,
                                 "max_loss": for_guesses, "runs": what.runs})
                if mode.max_loss and "prompts" not in row:
                    progress(f"{mode.name}: prompts")
                    prompts = child.ask({"what": "prompts", "file": what.prompts, "max_loss": mode.max_loss})
                    _add_prompts(row, prompts, answers)
                    row["prompts"]["budget"] = budget
            row["budgets"].append({"budget": budget, **_speed(run, row)})
        if mode.max_loss and row["budgets"] and "loss_of" not in row:
            row |= {"loss_of": "answers", "loss": max(at["loss"] for at in row["budgets"]),
                    "agreement": min(at["agreement"] for at in row["budgets"])}
    _mark(found)
    return {"budgets": list(budgets), "threads": threads, "texts": list(what.texts), "modes": found}


class _MeasuredMode:
    """A process with a mode's model, and what it says of that."""

    def __init__(self, mode: Mode, settings: Mapping[str, Any]) -> None:
        of_mode = {**settings, **({} if mode.kv_type is None else {"kv_type": mode.kv_type}), "max_loss": mode.max_loss}
        self._child = Child("mode_process", [mode.bundle, json.dumps(of_mode)])

    def __enter__(self) -> tuple[Child, dict[str, Any]]:
        try:
            return self._child, self._child.answer()
        except BaseException:
            self._child.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._child.close()


def _between(smallest: int, whole: int) -> list[int]:
    """Half of the way from the smallest budget to the whole model in memory, five sixths, where models of all sizes
    draft, and all of it; whole MiB."""
    return [-(-(smallest + (whole - smallest) * sixths // 6) // MIB) * MIB for sixths in (3, 5, 6)]


def _quality(scores: Mapping[str, Any], exact: Mapping[str, Any]) -> dict[str, Any]:
    """perplexity, by text. loss: how much less likely a token of all texts is than in the exact mode. agreement: with
    what it finds most likely. Both None for texts that are not cut into the same tokens."""
    perplexity = {name: math.exp(score["loss"] / score["tokens"]) for name, score in scores.items()}
    if any(score["digest"] != exact[name]["digest"] for name, score in scores.items()):
        return {"perplexity": perplexity, "loss": None, "agreement": None}
    tokens = sum(score["tokens"] for score in scores.values())
    lost = sum(score["loss"] - exact[name]["loss"] for name, score in scores.items())
    alike = [ours == theirs for name, score in scores.items()
             for ours, theirs in zip(score["choices"], exact[name]["choices"], strict=True)]
    return {"perplexity": perplexity, "loss": math.expm1(lost / tokens), "agreement": sum(alike) / len(alike)}


def _add_prompts(row: dict[str, Any], prompts: Mapping[str, Any], answers: list[list[str]]) -> None:
    """answers: those of the exact mode, once they are known."""
    if not answers:
        answers.append(prompts["answers"])
    row["prompts"] = _share(prompts["right"])
    row["same_answers"] = sum(a == b for a, b in zip(prompts["answers"], answers[0], strict=True)) / len(answers[0])


def _share(right: Sequence[bool]) -> dict[str, Any]:
    match = Accuracy.of(right)
    return {"count": len(right), "right": match.value, "stderr": match.error}


def _speed(run: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """tok_s: the median of the runs. bytes_a_token: read from flash. loss, agreement: where answers say what these are,
    of these answers."""
    of_answers = "loss_of" not in row
    return {"tok_s": statistics.median(run["run_tok_s"]), "run_tok_s": run["run_tok_s"],
            "bytes_a_token": run["flash_bytes"] / run["tokens"], "tokens_a_pass": run["tokens"] / run["passes"],
            "loss": math.expm1(run["loss"] / run["generated"]) if of_answers else row["loss"],
            "agreement": 1 - run["lenient"] / run["generated"] if of_answers else row["agreement"]}


def _mark(modes: Sequence[Mapping[str, Any]]) -> None:
    """Mark at each budget the modes of the Pareto front: none other loses no more and is faster, or loses less and is
    as fast."""
    for _, at_once in by_budget(modes):
        for _, at in at_once:
            at["pareto"] = at["loss"] is not None and not any(
                other["loss"] is not None and other["loss"] <= at["loss"] and other["tok_s"] >= at["tok_s"]
                and (other["loss"], -other["tok_s"]) != (at["loss"], -at["tok_s"]) for _, other in at_once)


def by_budget(modes: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Found]]:
    """Each budget with what was measured there: (mode, its entry in `budgets`)."""
    for budget in sorted({at["budget"] for mode in modes for at in mode["budgets"]}):
        yield budget, [(mode, at) for mode in modes for at in mode["budgets"] if at["budget"] == budget]
