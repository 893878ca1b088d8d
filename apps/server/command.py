"""`edgert serve`: answers over HTTP."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from edgert import Embedder, LanguageModel
from edgert.commands.bundle_argument import BUNDLE
from edgert.commands.embedding import embeddings_option, open_embedder, server_memory
from edgert.commands.loading import (
    load_model,
    model_options,
    parallel_option,
    read_text,
    sampling_options,
)
from edgert.commands.price import tell_price
from edgert.download import DEFAULT_MODEL, bundle_path
from edgert.errors import ModelError
from edgert.terminal import show

from ..command import default_bundle

_LEAST_KEY = 8


@click.command("serve")
@click.argument("bundle", type=BUNDLE, required=False)
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen at. Any other than this machine's own needs --api-key-file.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
              help="Port to listen at; 0 for a free one.")
@click.option("--api-key-file", type=click.Path(), metavar="FILE",
              help="Answer only requests that come with a key of this file, which has one in each line.")
@click.option("--queue", type=click.IntRange(0, 1000), default=8, show_default=True,
              help="How many requests may wait for the one that is answered.")
@click.option("--structured/--no-structured", default=True, show_default=True,
              help="Keep memory for answers that follow a JSON schema, or must call a function: 30 to 55 MB, if the "
                   "budget has room. Without it they are refused where weights leave nothing.")
@click.option("--chooser", is_flag=True,
              help="Let the page and Ollama's clients change to other models of the models' folder, fetch those of the "
                   "catalogue, and delete them.")
@sampling_options(temperature=0.8)
@parallel_option
@embeddings_option
@model_options
def command(bundle: str | None, host: str, port: int, api_key_file: str | None, queue: int, structured: bool,
            chooser: bool, sampling: dict[str, Any], parallel: int, embeddings: str | None,
            **model_settings: Any) -> None:
    """Answer over HTTP with the model in BUNDLE, as OpenAI's interface has it, and Ollama's; without BUNDLE with
    SmolLM2 135M.

    Clients of OpenAI's take http://127.0.0.1:8080/v1 as their base URL, those of Ollama's http://127.0.0.1:8080. The
    settings of sampling are for requests that do not say otherwise.
    """
    keys = _keys(api_key_file)
    embedder = None if embeddings is None else open_embedder(embeddings, model_settings["threads"])
    serve_bundle(bundle, model_settings, structured=structured, parallel=parallel, chooser=chooser, embedder=embedder,
                 host=host, port=port, keys=keys, queue=queue, defaults=sampling,
                 when_open=lambda url: show(f"listening at {url}", err=True))


def serve_bundle(bundle: str | None, model_settings: dict[str, Any], *, structured: bool = False, parallel: int = 1,
                 chooser: bool = False, embedder: Embedder | None = None, **settings: Any) -> None:
    """Serve a bundle until a signal ends it; without one the default model's, which with a chooser the page shows being
    fetched. model_settings: of `load_model`. structured: keep memory for structured output if there is room. parallel,
    chooser, embedder, settings: of `running.serve`. Raises EdgertError."""
    from .running import serve
    from .served import Served

    def load(path: Path, memory: int | str | None) -> LanguageModel:
        max_loss = settings.get("defaults", {}).get("max_loss", 0.0)
        given = {**model_settings, "parallel": parallel, **({} if memory is None else {"memory": memory}),
                 "embeddings": 0 if embedder is None else server_memory(embedder), "max_loss": max_loss}
        model = None
        if structured:
            with suppress(ModelError):  # too little memory, or no token that ends a text
                model = load_model(str(path), structured=True, **given)
        model = model or load_model(str(path), **given)
        tell_price(model, max_loss)
        return model

    path = Path(bundle or (bundle_path(DEFAULT_MODEL) if chooser else default_bundle()))
    if not path.is_file():
        if bundle or not chooser:
            raise ModelError(f"{path}: there is no such file")
        show(f"fetching and converting {DEFAULT_MODEL}, this once; the page shows how far it is", err=True)
    serve(Served(path, load), follow_reads=model_settings["trace"] is None, parallel=parallel, chooser=chooser,
          embedder=embedder, **settings)


def _keys(file: str | None) -> list[str]:
    """The keys in a file. Raises ModelError where there are none, or one could be guessed."""
    if file is None:
        return []
    keys = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if not keys:
        raise ModelError(f"{file}: has no key; write one into it")
    if any(len(key) < _LEAST_KEY or not key.isascii() for key in keys):
        raise ModelError(f"{file}: a key has at least {_LEAST_KEY} characters, all of them ASCII")
    return keys
