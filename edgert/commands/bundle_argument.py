"""The argument BUNDLE of commands, and what a shell completes it to."""

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from edgert.download import BUNDLE_SUFFIX, bundles_here, find_bundle


class _Bundle(click.ParamType):
    """A bundle: its path, or the name that it has in the models' folder."""

    name = "bundle"

    def convert(self, value: Any, _parameter: click.Parameter | None, _context: click.Context | None) -> str:
        return str(find_bundle(value))

    def shell_complete(self, _context: click.Context, _parameter: click.Parameter,
                       incomplete: str) -> list[CompletionItem]:
        """Names, and bundles in the current folder; or where no such begins like that, whatever files the shell finds:
        for bash it is one or the other."""
        found = [path.stem for path in bundles_here()] + sorted(map(str, Path().glob(f"*{BUNDLE_SUFFIX}")))
        return ([CompletionItem(name) for name in found if name.startswith(incomplete)]
                or [CompletionItem(incomplete, type="file")])


BUNDLE = _Bundle()
