"""`edgert convert`: converts a model to a bundle."""

import sys
import time
from pathlib import Path

import click

from edgert.bundle import Bundle
from edgert.bundle.contents import table
from edgert.control_characters import visible
from edgert.terminal import show

from .presets import DEFAULT, PRESETS


@click.command("convert")
@click.argument("source")
@click.argument("out")
@click.option("--preset", default=DEFAULT, show_default=True, type=click.Choice(list(PRESETS)),
              help="; ".join(f"{name}: {text}" for name, text in PRESETS.items()) + ".")
@click.option("--calibrate", "texts", multiple=True, metavar="TEXT", type=click.Path(path_type=Path),
              help="Calibrate with this text file instead of the text that comes with edgert; may be given repeatedly.")
@click.option("--no-calibrate", is_flag=True,
              help="Do not calibrate: that is to run some text through the model, and round weights to 4 bits so that "
                   "its results change least. Concerns only weights that have more bits in the source. Takes a minute "
                   "or two for 1.5 billion weights on two cores.")
def command(source: str, out: str, preset: str, texts: tuple[Path, ...], no_calibrate: bool) -> None:
    """Convert SOURCE to a bundle OUT, such as model.edge.

    SOURCE is a GGUF file, a folder with a safetensors or an ONNX model, an ONNX file, or hf:org/name[@revision].
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from .convert import convert

    if texts and no_calibrate:
        raise click.UsageError("--calibrate names a text to calibrate with, and --no-calibrate says not to: give one")
    started = time.perf_counter()
    columns = (TextColumn("{task.description:42}", markup=False), BarColumn(), TaskProgressColumn(),
               TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
            task = bars.add_task(visible(f"reading {Path(source).name}"), total=None)
            kinds = convert(source, out, preset, lambda what, done, total: bars.update(
                task, description=visible(what), completed=done, total=total), calibrate=not no_calibrate,
                texts=texts)
    except OSError as error:
        if isinstance(error.__context__, SystemExit):  # a SIGHUP, after which there is no terminal to tidy up
            raise error.__context__ from None
        raise
    size = Path(out).stat().st_size
    show(table(kinds, size))
    if texts:
        with Bundle(out) as bundle:
            used = "calibration" in bundle.header.provenance
        if not used:
            show("the text was not used: no weights were rounded to 4 bits that had more before")
    show(f"{out}: {size / 1e6:.1f} MB in {time.perf_counter() - started:.1f} s")
