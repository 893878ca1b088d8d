"""A forecast for a model that has not been fetched or converted: a bundle that is like its own would be, but hollow."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgert.bundle.header import CHAT_TEMPLATE, TOKENIZER
from edgert.bundle.writer import write_hollow
from edgert.download import models_folder
from edgert.errors import DownloadError, SourceError

from .hub import Named, parse
from .hub_headers import fetch_headers
from .layout import lay_out
from .open_source import open_source
from .presets import DEFAULT, preset


@dataclass(frozen=True)
class Forecast:
    """bundle: a file that can be planned with as if it were the model's bundle. file: the GGUF file that the forecast
    is for, None for safetensors. to_fetch, to_keep: bytes of the model's files, and of the bundle that they become."""

    bundle: Path
    file: str | None
    to_fetch: int
    to_keep: int


@contextmanager
def forecast(spec: str) -> Iterator[Forecast]:
    """What a model on the hub would be: `hf:org/name[@revision][:file.gguf]`, from the beginnings of its files alone.

    Raises DownloadError, and SourceError for a model that edgert does not read.
    """
    named, place = parse(spec), models_folder()
    with ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".forecast-", dir=place)))
            there = _forecast(named, folder)
        except SourceError as error:
            raise SourceError(f"{spec}: {str(error).replace(f'{folder}{os.sep}', '')}") from error
        except OSError as error:
            raise DownloadError(f"{spec}: a forecast needs some room in {place}: {error.strerror or error}") from error
        yield there


def _forecast(named: Named, folder: Path) -> Forecast:
    """Raises OSError, DownloadError or SourceError."""
    fetched = fetch_headers(named, folder)
    source = open_source(str(fetched.path), hashed=False)
    header = lay_out(source, preset(DEFAULT), {**source.provenance, "source": named.spec})
    texts = {TOKENIZER: source.tokenizer_json.encode()}
    if source.chat_template is not None:
        texts[CHAT_TEMPLATE] = source.chat_template.encode()
    bundle = folder / f"{named.repo.rpartition('/')[2]}.edge"
    write_hollow(bundle, header, texts)
    return Forecast(bundle, fetched.file, fetched.bytes, bundle.stat().st_size)
