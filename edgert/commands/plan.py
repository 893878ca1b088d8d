"""`edgert plan`: where memory goes, what has to be read from flash for each token, and how fast that will be."""

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import click

from edgert.bundle import Bundle, Header
from edgert.bundle.header import ExpertLoss
from edgert.download import ON_HUB, models_folder
from edgert.engine.retention import STOP, parse_policy
from edgert.errors import ModelError
from edgert.measuring.compute import Rehearsal
from edgert.measuring.startup import APP, PROGRAMS, RUN, SERVE, ProcessCost, process_cost
from edgert.memory.cache_room import CacheRoom
from edgert.memory.plan import Plan, Planner
from edgert.memory.prediction import MEASURED, PROMPT, Prediction, predict
from edgert.models.expert_config import Config as ExpertConfig
from edgert.opening import load_library, plan_cache, session_settings
from edgert.process import default_threads
from edgert.residency.device import Device, device_of, measure_folder
from edgert.sizes import parse_size
from edgert.terminal import show, show_json, show_passing

from .bundle_argument import BUNDLE
from .embedding import embeddings_option, open_embedder, server_memory
from .gguf import bundle_of
from .loading import compile_progress, parallel_option, plan_options
from .plan_chart import Point, curve, parts_table, picture, require_matplotlib
from .price import left_out_text
from .shares import SHARE

MIB = 1 << 20
_ROWS, _POINTS = 7, 60
"""About how many budgets are in the table, and in the plot."""
_STEPS = [n * 10 ** power // 10 for power in range(10) for n in (10, 15, 20, 30, 50)]
"""MiB, round numbers."""


@dataclass(frozen=True)
class Planned:
    """A plan and its predicted speed."""

    plan: Plan
    speed: Prediction

    def values(self) -> dict[str, Any]:
        return {"budget": self.plan.budget, "parts": self.plan.parts,
                "left_over": self.plan.budget - self.plan.needed, "bytes_per_token": self.plan.streamed,
                "weights_bytes": self.plan.weights, "pinned_share": round(self.plan.pinned_share, 4),
                "prefill_chunk": self.plan.chunk,
                **({} if self.plan.expected_hits is None else {"expected_hits": round(self.plan.expected_hits, 4)}),
                "predicted_decode_tok_s": round(self.speed.decode_tok_s, 2),
                "predicted_first_token_s": round(self.speed.first_token_s, 3), "limit": self.speed.limit,
                "speculation": self._speculation()}

    def _speculation(self) -> dict[str, Any] | None:
        """What it is expected to bring: an estimate; None where it brings nothing."""
        s = self.speed.speculation
        return None if s is None else {
            "agreement": round(s.agreement, 3), "guesses": s.guesses, "tokens_per_pass": round(s.tokens_per_pass, 2),
            "draft_s": round(s.draft_s, 5), "verify_s": round(s.verify_s, 5),
            "predicted_decode_tok_s": round(s.decode_tok_s, 2)}


class _Measured:
    """A bundle's planner, and what was measured for its plans and predictions. cost: of the process; its structured
    part is 0 where the budget has no room for that."""

    def __init__(self, header: Header, planner: Planner, room: CacheRoom, disk: Device, rehearsal: Rehearsal,
                 cost: ProcessCost, max_loss: float) -> None:
        self.header, self._planner, self._rehearsal, self._max_loss = header, planner, rehearsal, max_loss
        self.room, self.disk, self.cost = room, disk, cost
        self.smallest, self.whole = (planner.named(n) for n in (planner.smallest(disk), planner.whole))

    def planned(self, budget: int) -> Planned:
        plan = self._planner.plan(budget, lambda: self.disk)
        return Planned(plan, predict(self.header, plan, self.disk, self._rehearsal.seconds,
                                     self._rehearsal.draft_seconds, max_loss=self._max_loss))


@click.command("plan")
@click.argument("bundle", type=BUNDLE)
@click.option("-m", "--memory", metavar="SIZE",
              help="Memory that the whole process may use, like 600M or 1.5G.  [default: compare several budgets]")
@click.option("--for", "program", type=click.Choice(PROGRAMS), default=RUN, show_default=True,
              help="The command that has the budget: a chat on a terminal and a server take more of it than run; bench "
                   "and a chat with other input take as much as run, web as much as app.")
@plan_options
@parallel_option
@embeddings_option
@click.option("--max-loss", type=SHARE, default=0.0, metavar="PERCENT",
              help="Of the answers, as of edgert run: speculation is faster then; a mixture leaves out experts, a "
                   "sparse model with predictors neurons.")
@click.option("--png", metavar="FILE", type=click.Path(dir_okay=False),
              help="Draw the speed against the budget as a picture; needs pip install 'edgert[plot]'.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle: str, memory: str | None, program: str, threads: int | None, context: int | None,
            prefill_chunk: int, kv_type: str | None, kv_memory: str | None, kv_policy: str | None, parallel: int,
            embeddings: str | None, max_loss: float, png: str | None, as_json: bool) -> None:
    """Show where memory goes when BUNDLE runs with --memory SIZE, and predict how fast that is.

    BUNDLE may be a model on the Hugging Face hub, hf:ORG/NAME or hf:ORG/NAME:FILE.gguf: a forecast, for which only the
    beginnings of its files are fetched.

    Without --memory, compare budgets from the smallest that works to the whole model in memory. The model is not
    loaded; the prediction comes from measuring a fresh process, the processor and, the first time, the disk.
    """
    if png:
        require_matplotlib()
    budget = None if memory is None else parse_size(memory)
    of_cache = None if kv_memory is None else parse_size(kv_memory)
    of_embeddings = _embeddings_bytes(embeddings, program, threads)
    with _there(bundle) as (path, more), Bundle(path) as opened, \
            _measured(opened, program, budget, threads, context, prefill_chunk, kv_type, of_cache, kv_policy,
                      parallel, of_embeddings, max_loss) as measured:
        chosen = None if budget is None else measured.planned(budget)
        table = [] if chosen else [measured.planned(b) for b in _budgets(measured.smallest, measured.whole, _ROWS)]
        points = ([measured.planned(b) for b in _budgets(measured.smallest, measured.whole, _POINTS)]
                  if png or not (chosen or as_json) else [])
    if png:
        picture(png, opened.path.name, [_point(p) for p in points], None if chosen is None else _point(chosen))
    if as_json:
        left_out = measured.header.left_out
        common = {**more, "smallest_budget": measured.smallest, "whole_budget": measured.whole,
                  "predicted_prompt_tokens": PROMPT, "device": asdict(measured.disk), "for": program,
                  "structured_output_bytes": measured.cost.structured,
                  **({} if left_out is None else {"left_out": left_out._asdict()}),
                  **({"window_bytes": measured.cost.window} if program == APP else {})}
        own = chosen.values() if chosen else {"budgets": [p.values() for p in table]}
        show_json({**own, **common})
        return
    if more:
        show(f"A forecast for {more['file'] or bundle}: {more['to_fetch'] / 1e9:.2f} GB to fetch, "
             f"{more['to_keep'] / 1e9:.2f} GB as a bundle.\n")
    if chosen:
        _show(chosen, measured, program)
    else:
        _compare(table, points, measured)
    if max_loss and measured.header.config.selective and not more:
        show(f"\n{left_out_text(measured.header, max_loss)}.")


def _embeddings_bytes(model: str | None, program: str, threads: int | None) -> int:
    """Bytes of the budget that embeddings take."""
    if model is None:
        return 0
    with open_embedder(model, threads) as embedder:
        return server_memory(embedder) if program == SERVE else embedder.memory


@contextmanager
def _there(bundle: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A bundle to plan with, and what is known of one that is not here. Raises EdgertError."""
    if not bundle.startswith(ON_HUB):
        yield str(bundle_of(bundle)), {}
        return
    converters = importlib.import_module("edgert.converters.forecast")  # by name: it is above this room
    with ExitStack() as stack:
        folder = models_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _saying("measuring the disk ..."):
                measure_folder(folder)  # before there is a bundle with nothing in it
        except OSError as error:
            raise ModelError(f"{folder}: cannot be written: {error.strerror or error}; set EDGERT_MODELS to another "
                             "folder") from error
        with _saying("fetching the beginnings of its files ..."):
            there = stack.enter_context(converters.forecast(bundle))
        yield str(there.bundle), {"file": there.file, "to_fetch": there.to_fetch, "to_keep": there.to_keep}


@contextmanager
def _measured(bundle: Bundle, program: str, budget: int | None, threads: int | None, context: int | None, chunk: int,
              kv_type: str | None, kv_memory: int | None, kv_policy: str | None, parallel: int,
              embeddings: int, max_loss: float) -> Iterator[_Measured]:
    """Measure all that planning needs. Raises ModelError for a budget that is too small, as early as possible."""
    header = bundle.header
    threads = default_threads() if threads is None else threads
    context, kv_type = session_settings(header, context, kv_type, kv_memory, kv_policy, chunk, parallel)
    policy, header = parse_policy(kv_policy or STOP, context, header.config), header.leaving_out(
        header.left_out_for(max_loss))
    library = load_library(compile_progress)
    with _saying("measuring the process ..."):
        cost = process_cost(bundle.path, program)
    with _saying("measuring the disk ..."):
        disk = device_of(bundle.path)

    def planned_with(process: int) -> tuple[CacheRoom, Planner]:
        # Several budgets are compared with one cache: where it may be on flash, with as little of it as there can be.
        room, planner = plan_cache(header, policy, process=process, context=context, cache_type=kv_type, chunk=chunk,
                                   threads=threads, memory=kv_memory, budget=budget or 0, parallel=parallel,
                                   embeddings=embeddings)
        planner.plan(budget, lambda: disk)
        return room, planner

    try:
        room, planner = planned_with(cost.process + cost.structured)
    except ModelError:  # edgert serve goes on without structured output then
        if not cost.structured:
            raise
        cost = replace(cost, structured=0)
        room, planner = planned_with(cost.process)
    with Rehearsal(_computed(header), library, threads=threads, cache_type=kv_type) as rehearsal:
        with _saying("measuring the processor ..."):
            for tokens in MEASURED:
                rehearsal.seconds(tokens)
            rehearsal.draft_seconds  # noqa: B018
        yield _Measured(header, planner, room, disk, rehearsal, cost, max_loss)


def _computed(header: Header) -> Header:
    """A header whose tokens have as many experts as stay. Among zeros all weigh the same, so by their weight none is
    left out, or all but one."""
    config, left_out = header.config, header.left_out
    if not isinstance(left_out, ExpertLoss) or not isinstance(config, ExpertConfig):
        return header
    return replace(header, config=replace(config, num_experts_per_tok=round(left_out.experts)))


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """Show on a terminal's standard error what is being done, and remove it when it is done."""
    show_passing(what)
    try:
        yield
    finally:
        show_passing()


def _budgets(smallest: int, whole: int, rows: int) -> list[int]:
    """About `rows` budgets from `smallest` to `whole`, in between at round numbers."""
    span = (whole - smallest) // MIB
    step = MIB * next(n for n in _STEPS if n * rows >= span)
    first = smallest // step * step + step
    # One that is next to the smallest or to the whole tells nothing new.
    return sorted({smallest, *(b for b in range(first, whole, step)
                               if min(b - smallest, whole - b) * 4 > step), whole})


def _point(planned: Planned) -> Point:
    return Point(planned.plan.budget / MIB, planned.speed.decode_tok_s, planned.speed.best_tok_s)


def _show(planned: Planned, measured: _Measured, program: str) -> None:
    plan, speed = planned.plan, planned.speed
    show(parts_table(plan.parts, plan.budget))
    show()
    read = (f"{plan.streamed / MIB:.0f} of {plan.weights / MIB:.0f} MiB of weights" if plan.streamed
            else "nothing: all weights are in memory")
    rows = [("smallest budget", f"{measured.smallest // MIB} MiB"),
            ("nothing is read", f"from {measured.whole // MIB} MiB on"),
            ("read for a pass", read),
            *_experts(measured.header, plan),
            *([("and of the cache", f"up to {measured.room.on_flash / MIB:.0f} MiB, when the context of "
                                    f"{measured.room.context} tokens is full")] if measured.room.flash else []),
            ("stay in memory", f"{100 * plan.pinned_share:.0f} % of the weights"),
            ("prompt at once", f"{plan.chunk} tokens"),
            ("disk", f"{measured.disk.name}, {measured.disk.bandwidth / 1e9:.2f} GB/s when it was measured"),
            ("predicted speed", f"{_rate(speed.decode_tok_s)} tokens/s, as fast as "
                                f"{'the disk' if speed.limit == 'flash' else 'computing'} allows"),
            *_guessing(planned),
            ("first token", f"after {speed.first_token_s:.1f} s, for a prompt of {PROMPT} tokens"),
            *_beside(measured.cost, program)]
    for name, value in rows:
        show(f"{name:20}{value}")


def _experts(header: Header, plan: Plan) -> list[tuple[str, str]]:
    """Of a mixture of experts: how many of them there is room for."""
    if plan.expected_hits is None:
        return []
    room, every = sum(plan.placement.window.values()), header.config.experts * len(header.neurons)
    return [("experts in memory", f"{room} of {every}; {100 * plan.expected_hits:.0f} % of "
                                  "those that a token needs are expected to be there")]


def _guessing(planned: Planned) -> list[tuple[str, str]]:
    speculation = planned.speed.speculation
    if speculation is None:
        return [("with speculation", "no faster")] if planned.plan.streamed else []
    return [("with speculation", f"{_rate(speculation.decode_tok_s)} tokens/s, an estimate: it depends on the text"),
            ("tokens a pass", f"{speculation.tokens_per_pass:.1f}, if {100 * speculation.agreement:.0f} % of the "
                              f"guesses are right, {speculation.guesses} before each pass")]


def _beside(cost: ProcessCost, program: str) -> list[tuple[str, str]]:
    """What the program's process has for more than answering, and what is not in the budget."""
    if program == SERVE:
        return [("structured output", f"{cost.structured / MIB:.0f} MiB of the process" if cost.structured else
                 "no room for it: schemas and required calls will be refused")]
    if program == APP:
        return [("beside the budget", f"{cost.window / MIB:.0f} MiB, the window when it was open last" if cost.window
                 else "the window, which is measured when it is open: some 350 to 400 MiB")]
    return []


def _compare(table: list[Planned], points: list[Planned], measured: _Measured) -> None:
    show(f"{'budget':>10}  {'read for a pass':>18}  {'in memory':>10}  {'tokens/s':>9}  {'speculating':>11}  "
         f"{'right':>5}  {'a pass':>6}  {'first token':>11}")
    for planned in table:
        plan, speed, guessing = planned.plan, planned.speed, planned.speed.speculation
        note = {measured.smallest: "the smallest that works", measured.whole: "all in memory"}.get(plan.budget, "")
        guessed = ("", "", "") if guessing is None else (
            _rate(guessing.decode_tok_s), f"{100 * guessing.agreement:.0f} %", f"{guessing.tokens_per_pass:.1f}")
        show(f"{plan.budget / MIB:6.0f} MiB  {plan.streamed / MIB:14.0f} MiB  {100 * plan.pinned_share:8.0f} %  "
             f"{_rate(speed.decode_tok_s):>9}  {guessed[0]:>11}  {guessed[1]:>5}  {guessed[2]:>6}  "
             f"{speed.first_token_s:>9.1f} s  {note}".rstrip())
    show(f"\nPredicted, with a disk of {measured.disk.bandwidth / 1e9:.2f} GB/s ({measured.disk.name}); the first "
         f"token of a prompt of {PROMPT} tokens.\nSpeculating: several tokens a pass, if so many guesses are right, "
         "which is an estimate: it depends on the text.\n")
    show(curve([_point(p) for p in points]))


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"
