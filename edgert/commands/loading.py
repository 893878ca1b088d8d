"""What commands that load a model have in common: options, loading, and messages while kernels are compiled."""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from edgert.answering import LanguageModel
from edgert.engine.retention import POLICIES, STOP
from edgert.errors import ModelError
from edgert.kernels.pages import CACHE_TYPES
from edgert.loading import DEFAULT_CHUNK, load
from edgert.model import Model
from edgert.opening import MOST_PARALLEL
from edgert.sizes import parse_size, size_text
from edgert.speculation.speculator import AUTO, OFF
from edgert.terminal import proper_text, show, show_passing

from .gguf import Foreign, bundle_of, resolve
from .shares import SHARE

Command = Callable[..., Any]


class _Text(click.ParamType):
    """An argument that is text for the model, in the locale's encoding."""

    name = "text"

    def convert(self, value: Any, parameter: click.Parameter | None, _context: click.Context | None) -> str:
        try:
            return proper_text(value)
        except UnicodeDecodeError as error:
            option = parameter.opts[-1] if parameter is not None else "an argument"
            raise ModelError(f"{option} is not {error.encoding.upper()} text: byte {error.object[error.start]:#04x} "
                             f"at offset {error.start}; convert it, or give the text in a file") from None


TEXT = _Text()


def model_options(command: Command) -> Command:
    """Adds --memory, --speculation, --trace, and the options of `plan_options`."""
    memory = click.option("-m", "--memory", metavar="SIZE",
                          help="Memory that the whole process may use, like 600M or 1.5G.  "
                               "[default: most of what is free]")
    trace = click.option("--trace", type=click.Path(), metavar="FILE",
                         help="Write a timeline of computing and reading, for chrome://tracing or ui.perfetto.dev.")
    speculation = click.option("--speculation", metavar="off|auto|N", default="auto", show_default=True,
                               help="Guess tokens, and check them all in one pass: never, as far as it pays, or so "
                                    "many each time. The answer is the same.")
    return memory(plan_options(speculation(trace(command))))


def plan_options(command: Command) -> Command:
    """Adds --threads, --context, --prefill-chunk, --kv-type, --kv-memory, --kv-policy."""
    for option in (
        click.option("--kv-policy", type=click.Choice(list(POLICIES)),
                     help="When the context is full: stop, also with a context that is larger than memory, the rest "
                          "being read from flash (flash); or go on without end and forget: all but the first and the "
                          "latest tokens (window), or what attention returns to least (heavy), or keep it at 3 bits an "
                          "element as long as there is room for that (mixed).  [default: stop]"),
        click.option("--kv-memory", metavar="SIZE",
                     help="Memory that the key-value cache takes, like 100M.  [default: what the context needs; with "
                          "--kv-policy flash what weights leave]"),
        click.option("--kv-type", type=click.Choice(list(CACHE_TYPES)),
                     help="Type of the key-value cache: q8 takes about half of f16, q4 two fifths.  "
                          "[default: f16; f32 for unquantized bundles]"),
        click.option("--prefill-chunk", type=click.IntRange(1, 4096), default=DEFAULT_CHUNK, show_default=True,
                     help="Prompt tokens that are computed at once, at most."),
        click.option("-c", "--context", type=click.IntRange(1),
                     help="Context length: tokens of prompt and answers together.  [default: 4096, or the "
                          "model's maximum]"),
        click.option("-t", "--threads", type=click.IntRange(1, 256),
                     help="Number of threads that compute.  [default: one per physical core]"),
    ):
        command = option(command)
    return command


def parallel_option(command: Command) -> Command:
    """Adds --parallel."""
    return click.option("--parallel", type=click.IntRange(1, MOST_PARALLEL), default=1, show_default=True,
                        help="How many answers are computed at once. Each has a context of its own, which takes "
                             "memory; where weights are streamed several take little longer than one.")(command)


FOLD, OFF_THINKING = "fold", "off"
THINK = ("show", FOLD, "hide", OFF_THINKING)


def think_option(command: Command) -> Command:
    """Adds --think: None, or one of THINK."""
    return click.option("--think", type=click.Choice(THINK),
                        help="Have a model that can think do so before it answers, and show that, fold it into one "
                             "line, or hide it; or have it not think (off).  [default: as the model does by itself, "
                             "folded]")(command)


def thinking_asked(think: str | None) -> bool | None:
    """What --think says to `LanguageModel.chat`."""
    return None if think is None else think != OFF_THINKING


def sampling_options(temperature: float) -> Callable[[Command], Command]:
    """Adds --temperature and the other settings of `Sampling`, with this default temperature. The command gets them
    together, as `sampling`: keywords of `Model.generate`."""
    options = {
        "temperature": click.option("--temperature", "--temp", type=float, default=temperature, show_default=True,
                                    help="Higher is more random; 0 always takes the most likely token."),
        "top_k": click.option("--top-k", type=click.IntRange(0), default=40, show_default=True,
                              help="Sample only this many of the most likely tokens, 0 for all."),
        "top_p": click.option("--top-p", type=float, default=0.95, show_default=True,
                              help="Sample only the most likely tokens that together reach this probability."),
        "min_p": click.option("--min-p", type=float, default=0.05, show_default=True,
                              help="Sample only tokens at least this fraction as likely as the most likely one."),
        "repetition_penalty": click.option("--repetition-penalty", "--repeat-penalty", type=float, default=1.0,
                                           show_default=True, help="Values above 1 make recent tokens less likely."),
        "presence_penalty": click.option("--presence-penalty", type=float, default=0.0, show_default=True,
                                         help="Values above 0 make tokens less likely that the answer has already."),
        "frequency_penalty": click.option("--frequency-penalty", type=float, default=0.0, show_default=True,
                                          help="The same for each time that the answer has them."),
        "seed": click.option("--seed", type=click.IntRange(0, 2 ** 64 - 1),
                             help="Seed of the random numbers: the same seed samples the same tokens."),
        "max_loss": click.option("--max-loss", type=SHARE, default=0.0, metavar="PERCENT",
                                 help="For speed where weights are streamed: guesses are taken that the model likes "
                                      "nearly as much as its own choice, so that the answer is up to so much less "
                                      "likely a token, like 3%. It then depends on the budget. Of mixtures, experts "
                                      "that weigh little are left out first, of sparse models with predictors neurons "
                                      "that are seldom active.  [default: 0%]"),
    }

    def add(command: Command) -> Command:
        @wraps(command)
        def gathered(**given: Any) -> Any:
            return command(sampling={name: given.pop(name) for name in options}, **given)

        decorated: Command = gathered
        for option in reversed(options.values()):
            decorated = option(decorated)
        return decorated

    return add


def load_model(path: str | Path | Foreign, **settings: Any) -> LanguageModel:
    """Load a bundle, or a GGUF file, and tell the user how memory is used, if weights are streamed, which kernels are
    compiled, and that llama.cpp runs the model, if edgert does not know its family."""
    found = path if isinstance(path, Foreign) else resolve(path)
    return load_foreign(found, **settings) if isinstance(found, Foreign) else load_bundle(found, **settings)


def load_bundle(path: str | Path, **settings: Any) -> Model:
    """Load a bundle, or a GGUF file of a family that edgert knows, as `load_model` does."""
    model = load(bundle_of(path), compile_progress=compile_progress, **settings)
    if model.plan.disk is not None:
        refused = "" if model.direct else "; direct reading is refused here, so through the page cache"
        show(f"memory: {model.plan.summary}{refused}", err=True)
    return model


def load_foreign(file: Foreign, *, memory: str | int | None = None, threads: int | None = None,
                 context: int | None = None, prefill_chunk: int = DEFAULT_CHUNK, kv_type: str | None = None,
                 kv_policy: str | None = None, kv_memory: str | None = None, speculation: str = AUTO,
                 trace: str | None = None, parallel: int = 1, structured: bool = False,
                 embeddings: int = 0, max_loss: float = 0.0) -> LanguageModel:
    """Have llama.cpp run a GGUF file, and tell the user. embeddings: bytes of the budget that are not for it. max_loss:
    changes nothing of how it is loaded. Raises ModelError, also for settings that it does not have."""
    refused = [name for name, given in (
        ("--kv-policy", kv_policy not in (None, STOP)), ("--kv-memory", kv_memory is not None),
        ("--speculation", speculation not in (AUTO, OFF)), ("--trace", trace is not None),
        ("--parallel", parallel > 1)) if given]
    if refused:
        raise ModelError(f"{file.why}; llama.cpp would run it, but without {' and '.join(refused)}: leave that away")
    from edgert.fallback.model import LlamaModel

    budget = parse_size(memory) if isinstance(memory, str) else memory
    model = LlamaModel(file.path, memory=None if budget is None else budget - embeddings, threads=threads,
                       context=context, batch=prefill_chunk, kv_type=kv_type, structured=structured)
    bound = ("and edgert does not bound its memory" if model.plan.limit is None else
             f"and the kernel keeps it within what edgert leaves of {size_text(model.plan.limit)}")
    show(f"{file.why}; so llama.cpp runs it, {bound}", err=True)
    return model


def read_text(path: str) -> str:
    """Read a text file. Raises ModelError where it cannot be read or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{path}: is not UTF-8 text") from None


def compile_progress(number: int, count: int, name: str) -> None:
    """Show on standard error which kernel is being compiled; on a terminal in one line that is rewritten."""
    if not sys.stderr.isatty():
        if number == 1:
            show(f"compiling {count} kernels for this processor, this once (one to two minutes)", err=True)
        return
    show_passing(f"compiling for this processor, this once: {number}/{count} {name}" if number < count else "")
