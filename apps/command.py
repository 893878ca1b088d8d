"""`edgert chat`: chat with a model in the terminal."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import edgert
from edgert.commands.bundle_argument import BUNDLE
from edgert.commands.loading import (
    TEXT,
    load_model,
    model_options,
    sampling_options,
    think_option,
)
from edgert.commands.price import tell_price
from edgert.download import DEFAULT_MODEL, WAITING
from edgert.errors import SessionError
from edgert.sessions import session_info, using_session
from edgert.terminal import show

from .bundles import BEGINNING, WAITING_FOR_BUNDLE, make_bundle


@click.command("chat")
@click.argument("bundle", type=BUNDLE, required=False)
@click.option("--system", type=TEXT, help="System message: what the model is told before the conversation.")
@click.option("--session", metavar="NAME",
              help="Keep the conversation under this name, and go on with it: nothing is computed again.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), help="Limit each answer to this many tokens.")
@click.option("--history/--no-history", default=True, show_default=True,
              help="Keep what is typed, in a file that only you may read, for the arrow keys in later chats.")
@think_option
@sampling_options(temperature=0.8)
@model_options
def command(bundle: str | None, system: str | None, session: str | None, max_tokens: int | None, history: bool,
            think: str | None, sampling: dict[str, Any], **model_settings: Any) -> None:
    """Chat with the model in BUNDLE; without BUNDLE with SmolLM2 135M, which is downloaded and converted if need be.

    If standard input is not a terminal, it is read as one question, and answered.
    """
    from .chat_settings import Settings
    from .terminal_chat import chat

    path = bundle or str(default_bundle())
    settings = Settings({"max_tokens": max_tokens, **sampling}, click.get_current_context().command.params)

    def open_model(changes: Mapping[str, Any]) -> edgert.LanguageModel:
        asked = {"bundle": path, "max_loss": sampling["max_loss"], **model_settings, **changes}
        if changes:
            asked["trace"] = None  # what was traced stays
        model = load_model(asked.pop("bundle"), **asked)
        if session is not None and not changes and not model.keeps_sessions:
            model.close()
            raise SessionError("conversations with a model that llama.cpp runs cannot be kept; leave --session away")
        tell_price(model, settings.values["max_loss"])
        return model

    if session is None:
        chat(open_model, system, settings, history=history, think=think)
        return
    with using_session(session) as file:
        if file.exists():
            _as_it_was(session, model_settings)
            if click.get_current_context().get_parameter_source("seed") is not ParameterSource.COMMANDLINE:
                settings.values["seed"] = None  # the session's own
        elif sampling["seed"] is None:
            settings.values["seed"] = secrets.randbits(32)
        chat(open_model, system, settings, file, history, think)


def _as_it_was(name: str, settings: dict[str, Any]) -> None:
    """Where the command line does not say otherwise, a session that is kept goes on with the cache that it had."""
    source = click.get_current_context().get_parameter_source
    if (kept := session_info(name).saved) is not None:
        for setting, value in (("kv_type", kept.cache_type), ("kv_policy", kept.policy), ("context", kept.context)):
            if source(setting) is not ParameterSource.COMMANDLINE:
                settings[setting] = value


def default_bundle() -> Path:
    """The bundle of the default model, in the models' folder. If it is missing, one process downloads and converts it.

    Raises EdgertError.
    """
    told = {BEGINNING: f"fetching and converting {DEFAULT_MODEL}, this once", WAITING: f"{DEFAULT_MODEL}: {WAITING}",
            WAITING_FOR_BUNDLE: f"waiting for another process that fetches and converts {DEFAULT_MODEL}"}

    def progress(what: str, done: int, total: int) -> None:
        if what in told:
            show(told[what], err=True)

    return make_bundle(DEFAULT_MODEL, progress)
