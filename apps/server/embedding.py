"""/v1/embeddings: vectors of texts, from a process of their own: they wait for no answer, and none for them."""

import asyncio
import base64
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta, Raw, Struct
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from edgert import EdgertError, Embedder
from edgert.commands.embedding import MOST_BODY, MOST_TEXTS

from .bodies import Bodies, is_large
from .errors import ApiError, invalid

_ROWS = 64
"""Vectors that are written at once."""
_RETRY_S = 2
"""Seconds after which a client is told to ask again where too many wait."""


class EmbeddingRequest(Struct, kw_only=True):
    """The body of /v1/embeddings. input: a text, or a list of texts."""

    input: Raw
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None

    def texts(self) -> list[str]:
        """The texts. Raises ApiError."""
        if bytes(memoryview(self.input)[:256]).lstrip(b"[ \t\r\n")[:1].isdigit():
            raise ApiError(400, "input: token ids are not supported, only texts; LangChain's OpenAIEmbeddings sends "
                           "texts with check_embedding_ctx_length=False", param="input", code="unsupported")
        try:
            given = msgspec.json.decode(self.input, type=str | list[str])
        except msgspec.MsgspecError as error:
            refusal = invalid(error)
            raise ApiError(400, f"input: give a text, or a list of texts ({refusal.message})", param="input",
                           code=refusal.code) from None
        texts = [given] if isinstance(given, str) else given
        if not all(texts) or not texts:
            raise ApiError(400, "input: has an empty text" if texts else "input: is an empty list; give at least one "
                           "text", param="input")
        if len(texts) > MOST_TEXTS:
            raise ApiError(400, f"input: has {len(texts)} texts; at most {MOST_TEXTS} at once", param="input")
        return texts


class Embeddings:
    """Answers such requests, one after another. queue: how many may wait."""

    def __init__(self, embedder: Embedder, bodies: Bodies, queue: int) -> None:
        self._embedder, self._bodies, self._queue = embedder, bodies, queue
        self._turn = asyncio.Lock()
        self._inside = 0
        self._thread = ThreadPoolExecutor(1, "edgert-embed")

    async def answer(self, request: Request) -> Response:
        """Large bodies are read when their turn comes: one is in memory at a time. Raises ApiError."""
        if self._inside > self._queue:
            raise ApiError(429, f"{self._queue} requests for embeddings are waiting already; try again later",
                           code="queue_full", retry_after=_RETRY_S)
        self._inside += 1
        try:
            asked = None if is_large(request) else await self._read(request)
            async with self._turn:
                asked = asked or await self._read(request)
                vectors, tokens = await self._vectors(request, asked)
        finally:
            self._inside -= 1
        return StreamingResponse(_body(vectors, asked.encoding_format == "base64", self._embedder.name, tokens),
                                 media_type="application/json")

    async def _read(self, request: Request) -> EmbeddingRequest:
        return await self._bodies.read_within(request, EmbeddingRequest, MOST_BODY, "so send fewer texts at once")

    async def _vectors(self, request: Request, asked: EmbeddingRequest) -> tuple[np.ndarray, int]:
        """The vectors, and how many tokens they are of. Between pieces is looked whether the client is still there."""
        texts = asked.texts()
        if asked.dimensions is not None and asked.dimensions > self._embedder.dimension:
            raise ApiError(400, f"dimensions is {asked.dimensions}; vectors of {self._embedder.name} have "
                           f"{self._embedder.dimension}", param="dimensions")
        vectors = np.empty((len(texts), asked.dimensions or self._embedder.dimension), np.float32)
        tokens, pieces = 0, self._embedder.pieces(texts, dimensions=asked.dimensions)
        loop = asyncio.get_running_loop()
        try:
            while (piece := await loop.run_in_executor(self._thread, next, pieces, None)) is not None:
                vectors[piece.indices] = piece.vectors
                tokens += piece.tokens
                if await request.is_disconnected():
                    raise ApiError(499, "the client has gone")
        except EdgertError as error:
            raise ApiError(503, str(error), code="unavailable") from None
        return vectors, tokens

    def close(self) -> None:
        """End what is being computed, and the process."""
        self._embedder.close()
        self._thread.shutdown(wait=False)


async def _body(vectors: np.ndarray, as_base64: bool, model: str, tokens: int) -> AsyncIterator[bytes]:
    """The JSON of an answer, in parts: Python's objects for all of its numbers would take many times their size."""
    yield b'{"object":"list","data":['
    for start in range(0, len(vectors), _ROWS):
        rows = [_object(index, vector, as_base64) for index, vector in enumerate(vectors[start:start + _ROWS], start)]
        yield (("," if start else "") + ",".join(rows)).encode()
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    yield b'],"model":' + msgspec.json.encode(model) + b',"usage":' + msgspec.json.encode(usage) + b"}"


def _object(index: int, vector: np.ndarray, as_base64: bool) -> str:
    if as_base64:
        value = f'"{base64.b64encode(vector.astype("<f4").tobytes()).decode()}"'
    else:
        value = f"[{','.join(f'{number:.9g}' for number in vector.tolist())}]"
    return f'{{"object":"embedding","index":{index},"embedding":{value}}}'
