"""/api/embed: vectors of texts, as Ollama's clients ask for them, and what these are told of the model."""

import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edgert import Embedder

from ..embedding import Embedded, Texts, in_parts, numbers
from ..errors import ApiError
from .durations import time_text
from .entries import description, details, entry
from .names import plain

_CAPABILITIES = ["embedding"]
_FAMILY = "bert"
"""As Ollama calls the family of nearly all such models; an ONNX file does not say which it is."""
_DETAILS = details("onnx", _FAMILY)


class EmbedRequest(Texts, kw_only=True):
    """The body of /api/embed. `keep_alive` is not looked at: the process that makes vectors ends when it is idle."""

    model: Annotated[str, Meta(max_length=4096)]
    truncate: bool | None = None

    def check(self, model: str) -> None:
        if plain(self.model) != plain(model):
            raise ApiError(404, f"model {self.model[:200]!r} not found; the one for embeddings is {model}")
        if self.truncate is False:
            raise ApiError(400, "truncate is false, which is not supported: texts that are too long are cut")

    async def answer(self, embedded: Embedded) -> AsyncIterator[bytes]:
        yield b'{"model":' + msgspec.json.encode(self.model) + b',"embeddings":['
        async for part in in_parts(embedded.vectors, lambda _, vector: numbers(vector)):
            yield part
        whole, computing = (round(1e9 * seconds) for seconds in embedded.seconds)
        yield (f'],"total_duration":{whole},"load_duration":{whole - computing},'
               f'"prompt_eval_count":{embedded.tokens}}}').encode()


def embedding_entry(embedder: Embedder) -> dict[str, Any] | None:
    """The model for embeddings in a list of models; None where its file is not there any more."""
    try:
        stat = embedder.onnx.stat()
    except OSError:
        return None
    mark = f"{stat.st_size} {stat.st_mtime_ns} ".encode() + os.fsencode(embedder.onnx)
    return entry(embedder.name, stat.st_size, hashlib.sha256(mark).hexdigest(), _DETAILS, _CAPABILITIES) | {
        "modified_at": time_text(datetime.fromtimestamp(stat.st_mtime, UTC))}


def embedding_shown(embedder: Embedder) -> dict[str, Any]:
    """What /api/show says of it."""
    return description(_DETAILS, _CAPABILITIES, {
        "general.architecture": _FAMILY, "general.basename": embedder.name,
        f"{_FAMILY}.embedding_length": embedder.dimension, f"{_FAMILY}.context_length": embedder.max_tokens})
