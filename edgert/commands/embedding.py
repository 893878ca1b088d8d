"""What commands that compute embeddings have in common: the model's name, and what is told while it is prepared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgert.download import embedding_folder
from edgert.embeddings.embedder import Embedder
from edgert.errors import EmbeddingError
from edgert.terminal import show

MOST_TEXTS, MOST_BODY = 2048, 2 << 20
"""Of a request to a server, at most: texts, and bytes."""
_BODIES = 6
"""Copies of a body that are in memory at once: as it comes, in one piece, and its texts, at four bytes a character."""


def embeddings_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --embeddings."""
    return click.option("--embeddings", metavar="MODEL",
                        help="Also a model for embeddings, which edgert serve answers /v1/embeddings with: as edgert "
                             "embed takes it. Its process is part of the budget.")(command)


def server_memory(embedder: Embedder) -> int:
    """Bytes of the budget that a server needs for embeddings: the process that computes them, a request, its answer."""
    return embedder.memory + _BODIES * MOST_BODY + MOST_TEXTS * embedder.dimension * 4


def open_embedder(model: str, threads: int | None) -> Embedder:
    """The embedder of a folder, or of a model that edgert pull fetches, by its name. Raises EmbeddingError."""
    path, folder = Path(model), embedding_folder(model)
    if folder is not None and not path.exists():
        if not (folder / "tokenizer.json").exists():
            raise EmbeddingError(f"{model}: is not here yet; edgert pull {model} fetches it")
        path = folder
    return Embedder(path, threads=threads, beginning=lambda: show(
        f"preparing {path.name} for onnxruntime, this once (some seconds)", err=True))
