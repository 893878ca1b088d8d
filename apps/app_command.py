"""`edgert app`: the page in a window, with a server of its own."""

import os
import secrets
import signal
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from edgert.commands.bundle_argument import BUNDLE
from edgert.commands.loading import model_options
from edgert.terminal import show

from .desktop import KINDS, Window, port_of_last_time, remember
from .launcher import install


@click.command("app")
@click.argument("bundle", type=BUNDLE, required=False)
@click.option("--window", type=click.Choice(["auto", *KINDS]), default="auto", show_default=True,
              help="A native window (needs pip install 'edgert[desktop]'), Chromium's, or the browser; auto takes the "
                   "first that there is.")
@click.option("--install", "installs", is_flag=True,
              help="Put a launcher with these options into the desktop's menu, and end.")
@model_options
def command(bundle: str | None, window: str, installs: bool, **model_settings: Any) -> None:
    """Chat with the model in BUNDLE in a window; without BUNDLE with SmolLM2 135M.

    The window can change to another model, and fetch those of the catalogue. The server that it talks to is this
    process; only the window has its key. It ends when the window is closed. --memory is for the server: the window is a
    process of its own, and shows what it takes beside that.
    """
    if installs:
        for path in install(_arguments(bundle, window, model_settings)):
            show(str(path))
        return
    from .server.command import serve_bundle

    key = secrets.token_urlsafe(24)
    windows: list[Window] = []

    def open_window(address: str) -> None:
        remember("port", urlsplit(address).port or 0)
        kinds = KINDS if window == "auto" else (window,)
        windows.append(Window(f"{address}/#key={key}", kinds, lambda: os.kill(os.getpid(), signal.SIGINT)))

    try:
        serve_bundle(bundle, model_settings, host="127.0.0.1", port=_port(), keys=[key], queue=8,
                     defaults={"temperature": 0.8}, when_open=open_window, chooser=True,
                     window_memory=lambda: windows[0].memory() if windows else None)
    finally:
        for opened in windows:
            opened.close()


def _port() -> int:
    """The port of last time, if it is free; else 0, for any."""
    port = port_of_last_time()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port


def _arguments(bundle: str | None, window: str, settings: dict[str, Any]) -> list[str]:
    """The options of this command, as they would be typed: those that were given, with paths that hold anywhere."""
    context = click.get_current_context()
    given = [] if bundle is None else [str(Path(bundle).absolute())]
    for parameter in context.command.params:
        name = parameter.name or ""
        if isinstance(parameter, click.Option) and name in {"window", *settings} and (
                context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE):
            value = window if name == "window" else settings[name]
            given += [parameter.opts[-1], str(Path(value).absolute()) if name == "trace" else str(value)]
    return given
