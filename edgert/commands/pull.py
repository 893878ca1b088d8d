"""`edgert pull`: downloads a model of the catalogue."""

import importlib
import sys

import click

from edgert.download import ON_HUB, WAITING
from edgert.download import pull as pull_model
from edgert.models import catalog
from edgert.terminal import show


def _list_models(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        for entry in catalog.everything().values():
            show(f"{entry.name:20} {entry.size / 1e6:6.0f} MB  {entry.license:16} {entry.description}")
        context.exit()


@click.command("pull")
@click.argument("name")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_models,
              help="List the models of the catalogue and exit.")
def command(name: str) -> None:
    """Download the model NAME, check its hash, and print the path of its file, or of its folder.

    NAME is one of the catalogue, or a model on the Hugging Face hub: hf:ORG/NAME, or hf:ORG/NAME:FILE.gguf for one file
    of it. Those go to the hub library's own cache; `edgert plan` makes a forecast before.

    A model that is already there is not downloaded again, an interrupted download is resumed, and if another process
    is downloading the same model, this one waits for it. Files go to $EDGERT_MODELS, or to the user's cache folder.
    """
    if name.startswith(ON_HUB):
        show(importlib.import_module("edgert.converters.hub").fetch_hub(name))  # by name: it is above this room
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task(name, total=None)

        def progress(what: str, done: int, total: int) -> None:
            if what == WAITING:  # said also where there is no terminal for bars
                bars.console.print(f"{name}: {what}", markup=False, soft_wrap=True)
            bars.update(task, description=f"{name}: {what}", completed=done, total=total)

        path = pull_model(name, progress=progress)
    show(path)
