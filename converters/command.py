"""`edgert convert`: converts a model to a bundle."""

import sys
import time
from pathlib import Path

import click

from edgert.bundle.contents import table
from edgert.control_characters import visible
from edgert.terminal import show

from .presets import DEFAULT, PRESETS


@click.command("convert")
@click.argument("source")
@click.argument("out")
@click.option("--preset", default=DEFAULT, show_default=True, type=click.Choice(list(PRESETS)),
              help="; ".join(f"{name}: {text}" for name, text in PRESETS.items()) + ".")
@click.option("--calibrate/--no-calibrate", default=True, show_default=True,
              help="Run some text through the model, and round weights to 4 bits so that its results change least. "
                   "Concerns only weights that have more bits in the source. Takes a minute or two for 1.5 billion "
                   "weights on two cores.")
def command(source: str, out: str, preset: str, calibrate: bool) -> None:
    """Convert SOURCE to a bundle OUT, such as model.edge.

    SOURCE is a GGUF file, a folder with a safetensors model, or hf:org/name[@revision].
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from .convert import convert

    started = time.perf_counter()
    columns = (TextColumn("{task.description:42}", markup=False), BarColumn(), TaskProgressColumn(),
               TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
            task = bars.add_task(visible(f"reading {Path(source).name}"), total=None)
            kinds = convert(source, out, preset, lambda what, done, total: bars.update(
                task, description=visible(what), completed=done, total=total), calibrate=calibrate)
    except OSError as error:
        if isinstance(error.__context__, SystemExit):  # a SIGHUP, after which there is no terminal to tidy up
            raise error.__context__ from None
        raise
    size = Path(out).stat().st_size
    show(table(kinds, size))
    show(f"{out}: {size / 1e6:.1f} MB in {time.perf_counter() - started:.1f} s")
