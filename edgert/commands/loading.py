"""What commands that load a model share: their options, and a word to the user while kernels are compiled."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgert.errors import ModelError
from edgert.model import DEFAULT_CHUNK, Model, load
from edgert.terminal import proper_text, show, show_passing

Command = Callable[..., Any]


class _Text(click.ParamType):
    """A text for the model, in the locale's encoding."""

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
    """--memory, --trace, and those of `plan_options`."""
    memory = click.option("-m", "--memory", metavar="SIZE",
                          help="Memory that the whole process may use, like 600M or 1.5G.  [default: what is free]")
    trace = click.option("--trace", type=click.Path(), metavar="FILE",
                         help="Write what was computed and read when, for chrome://tracing or ui.perfetto.dev.")
    return memory(plan_options(trace(command)))


def plan_options(command: Command) -> Command:
    """--threads, --context, --prefill-chunk, --kv-type."""
    for option in (
        click.option("--kv-type", type=click.Choice(["f16", "f32"]),
                     help="Element type of the key-value cache.  [default: f16; f32 for bundles not quantized]"),
        click.option("--prefill-chunk", type=click.IntRange(1, 4096), default=DEFAULT_CHUNK, show_default=True,
                     help="Prompt tokens computed at once."),
        click.option("-c", "--context", type=click.IntRange(1),
                     help="Tokens that a conversation may have.  [default: 4096, or what the model takes]"),
        click.option("-t", "--threads", type=click.IntRange(1, 256),
                     help="Threads that compute.  [default: one for each physical core]"),
    ):
        command = option(command)
    return command


def sampling_options(temperature: float) -> Callable[[Command], Command]:
    """--temperature and the other settings of sampling.Sampling."""
    def add(command: Command) -> Command:
        for option in (
            click.option("--seed", type=click.IntRange(0, 2 ** 64 - 1), help="Makes the choices repeatable."),
            click.option("--repetition-penalty", "--repeat-penalty", type=float, default=1.0, show_default=True,
                         help="Above 1: recent tokens become less likely."),
            click.option("--min-p", type=float, default=0.05, show_default=True,
                         help="Keep tokens at least this fraction as likely as the likeliest."),
            click.option("--top-p", type=float, default=0.95, show_default=True,
                         help="Keep the likeliest tokens that together reach this probability."),
            click.option("--top-k", type=click.IntRange(0), default=40, show_default=True,
                         help="Keep so many of the likeliest tokens, 0 for all."),
            click.option("--temperature", "--temp", type=float, default=temperature, show_default=True,
                         help="0 always takes the likeliest token."),
        ):
            command = option(command)
        return command
    return add


def load_model(path: str, **settings: Any) -> Model:
    """Load a bundle; say what is streamed, and at the very first start which kernels are being compiled."""
    model = load(path, compile_progress=compile_progress, **settings)
    if model.plan.disk is not None:
        refused = "" if model.direct else "; direct reading is refused here, so through the page cache"
        show(f"memory: {model.plan.summary}{refused}", err=True)
    return model


def read_text(path: str) -> str:
    """A file's text. Raises ModelError where it cannot be read or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{path}: is not UTF-8 text") from None


def compile_progress(number: int, count: int, name: str) -> None:
    """Show on standard error which kernel is compiled: one line, rewritten, on a terminal."""
    if not sys.stderr.isatty():
        if number == 1:
            show(f"compiling {count} kernels for this processor, this once (about half a minute)", err=True)
        return
    show_passing(f"compiling for this processor, this once: {number}/{count} {name}" if number < count else "")
