"""`edgert convert`: converts a model to a bundle."""

import sys
import time
from pathlib import Path

import click
from click.core import ParameterSource

from edgert.bundle import Bundle
from edgert.bundle.contents import table
from edgert.bundle.writer import is_begun
from edgert.control_characters import visible
from edgert.errors import EdgertError
from edgert.sizes import parse_size
from edgert.terminal import show

from .choosing import journal_of
from .presets import DEFAULT, PRESETS
from .pruning.request import METHODS
from .pruning.scratch import is_left

_SPEED_OVER_S = 600
"""Seconds over which the speed is measured that says how long it takes: one matrix may take many."""


@click.command("convert")
@click.argument("source")
@click.argument("out")
@click.option("--preset", default=DEFAULT, show_default=True, type=click.Choice(list(PRESETS)),
              help="; ".join(f"{name}: {text}" for name, text in PRESETS.items()) + ".")
@click.option("--size", metavar="SIZE",
              help="Instead of a preset: the mix of 2 to 6 bits, matrix by matrix, that is expected to lose least in a "
                   "bundle of at most this size, such as 700M.")
@click.option("--calibrate", "texts", multiple=True, metavar="TEXT", type=click.Path(path_type=Path),
              help="Calibrate with this text file instead of the text that comes with edgert; may be given repeatedly.")
@click.option("--no-calibrate", is_flag=True,
              help="Do not calibrate: that is to run some text through the model, and round weights to 4 bits so that "
                   "its results change least. Concerns only weights that have more bits in the source, or other steps. "
                   "Takes a minute or two for 1.5 billion weights on two cores.")
@click.option("--predictors", is_flag=True,
              help="Of a model whose activation makes zeros (ReLU), also compute predictors of which neurons are not "
                   "zero, with what it costs to rely on them: --max-loss then reads and computes no others. The bundle "
                   "has its neurons twice for that.")
@click.option("--cluster", is_flag=False, flag_value="", metavar="[ADDRESS]",
              help="Have layers converted by the workers of a Ray cluster, which have edgert and find SOURCE at the "
                   "same path. Without an address (at the end of the line) it is that of $RAY_ADDRESS, or one on this "
                   "machine, which is started if need be.")
@click.option("--prune", metavar="METHOD:AMOUNT[:PATTERN]",
              help="Have the model do without some of its weights, such as wanda:50% or sparsegpt:50%:2:4. METHOD: "
                   + "; ".join(f"{name}: {text}" for name, text in METHODS.items()) + ". PATTERN: unstructured; N:M, "
                   "of each M neighbours N are kept; 16x1, 16x4: blocks.")
@click.option("--time", "search_time", metavar="20m",
              help="How long --prune auto searches; without it some generations.")
@click.pass_context
def command(context: click.Context, source: str, out: str, preset: str, size: str | None, texts: tuple[Path, ...],
            no_calibrate: bool, predictors: bool, cluster: str | None, prune: str | None,
            search_time: str | None) -> None:
    """Convert SOURCE to a bundle OUT, such as model.edge.

    SOURCE is a GGUF file (of several, any), a folder with a safetensors or an ONNX model, an ONNX file, or
    hf:org/name[@revision]. Interrupted, the same command goes on where it was.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from .convert import convert

    if texts and no_calibrate:
        raise click.UsageError("--calibrate names a text to calibrate with, and --no-calibrate says not to: give one")
    if predictors and no_calibrate:
        raise click.UsageError("--predictors are computed while calibrating, and --no-calibrate says not to: give one")
    if size is not None and context.get_parameter_source("preset") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--size chooses formats, and so does --preset: give one")
    most = None if size is None else parse_size(size)
    started = time.perf_counter()
    columns = (TextColumn("{task.description:42}", markup=False), BarColumn(), TaskProgressColumn(),
               TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
                      speed_estimate_period=_SPEED_OVER_S) as bars:
            task = bars.add_task(visible(f"reading {Path(source).name}"), total=None)

            def progress(what: str, done: int, total: int) -> None:
                # What an earlier conversion did was not done in this time, nor what was measured before.
                if bars.tasks[0].total != total:
                    bars.reset(task, total=total, completed=done)
                bars.update(task, description=visible(what), completed=done)

            kinds = convert(source, out, preset, progress, size=most, calibrate=not no_calibrate, texts=texts,
                            cluster=cluster, prune=prune, search_time=search_time, predictors=predictors,
                            say=lambda sentence: show(sentence, err=True))
    except (KeyboardInterrupt, SystemExit, EdgertError):
        path = Path(out).resolve()
        if is_begun(Path(out)) or is_left(path) or journal_of(path).path.exists():
            show(f"{out}: what is done is kept beside it; the same command goes on from there", err=True)
        raise
    except OSError as error:
        if isinstance(error.__context__, SystemExit):  # a SIGHUP, after which there is no terminal to tidy up
            raise error.__context__ from None
        raise
    written = Path(out).stat().st_size
    show(table(kinds, written))
    if texts:
        with Bundle(out) as bundle:
            used = "calibration" in bundle.header.provenance
        if not used:
            show("the text was not used: no weights were newly rounded to 4 bits or fewer")
    show(f"{out}: {written / 1e6:.1f} MB in {time.perf_counter() - started:.1f} s")
