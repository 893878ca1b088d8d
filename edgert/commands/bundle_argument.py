"""The argument BUNDLE of commands, and what a shell completes it to."""

from typing import Any

import click
from click.shell_completion import CompletionItem

from edgert.download import bundles_here, find_bundle


class _Bundle(click.ParamType):
    """A bundle: its path, or the name that it has in the models' folder."""

    name = "bundle"

    def convert(self, value: Any, _parameter: click.Parameter | None, _context: click.Context | None) -> str:
        return str(find_bundle(value))

    def shell_complete(self, _context: click.Context, _parameter: click.Parameter,
                       incomplete: str) -> list[CompletionItem]:
        names = [path.stem for path in bundles_here() if path.stem.startswith(incomplete)]
        return [*map(CompletionItem, names), CompletionItem(incomplete, type="file")]


BUNDLE = _Bundle()
