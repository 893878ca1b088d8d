"""`edgert rm`: removes models from the models' folder."""

import click
from click.shell_completion import CompletionItem

from edgert.terminal import show

from .kept import all_kept, remove


def _complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(one.name) for one in all_kept() if one.name.startswith(incomplete)]


@click.command("rm")
@click.argument("names", metavar="NAME", nargs=-1, required=True, shell_complete=_complete)
def command(names: tuple[str, ...]) -> None:
    """Remove what `edgert list` shows under NAME. Programs that have it open go on."""
    for name in names:
        removed = remove(name)
        show(f"removed {removed.name}, {removed.size / 1e6:.0f} MB")
