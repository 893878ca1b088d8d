"""`edgert web`: the page, in the browser."""

import webbrowser
from typing import Any

import click

from edgert.commands.bundle_argument import BUNDLE
from edgert.commands.loading import model_options
from edgert.terminal import show

from .command import serve_bundle


@click.command("web")
@click.argument("bundle", type=BUNDLE, required=False)
@model_options
def command(bundle: str | None, **model_settings: Any) -> None:
    """Chat with the model in BUNDLE in the browser; without BUNDLE with SmolLM2 135M.

    The page can change to another model, and fetch those of the catalogue.
    """
    def open_browser(url: str) -> None:
        show(f"the page is at {url}", err=True)
        webbrowser.open(url)

    serve_bundle(bundle, model_settings, host="127.0.0.1", port=0, keys=[], queue=8, chooser=True,
                 defaults={"temperature": 0.8}, when_open=open_browser)
