"""Vectors of texts, as /v1/embeddings and Ollama's clients ask for them: from a process of their own, so that they wait
for no answer, and none for them."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


class Texts(Struct, kw_only=True):
    """What requests for embeddings have in common. input: a text, or a list of texts."""

    input: Raw
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None

    def check(self, model: str) -> None:
        """model: the name of the one that is asked. Raises ApiError for what cannot be had."""

    def answer(self, embedded: "Embedded") -> AsyncIterator[bytes]:
        """The JSON of an answer, in parts: Python's objects for all of its numbers would take many times their
        size."""
        raise NotImplementedError

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


class EmbeddingRequest(Texts, kw_only=True):
    """The body of /v1/embeddings."""

    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None

    async def answer(self, embedded: "Embedded") -> AsyncIterator[bytes]:
        as_base64, tokens = self.encoding_format == "base64", embedded.tokens
        yield b'{"object":"list","data":['
        async for part in in_parts(embedded.vectors, lambda index, vector: _object(index, vector, as_base64)):
            yield part
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        yield b'],"model":' + msgspec.json.encode(embedded.model) + b',"usage":' + msgspec.json.encode(usage) + b"}"


@dataclass(frozen=True)
class Embedded:
    """vectors: float32, a row for each text. tokens: how many they are of. model: its name. seconds: since the request
    came, and since its turn came."""

    vectors: np.ndarray
    tokens: int
    model: str
    seconds: tuple[float, float]


class Embeddings:
    """Answers such requests, one after another. queue: how many may wait."""

    def __init__(self, embedder: Embedder, bodies: Bodies, queue: int) -> None:
        self._embedder, self._bodies, self._queue = embedder, bodies, queue
        self._turn = asyncio.Lock()
        self._inside = 0
        self._thread = ThreadPoolExecutor(1, "edgert-embed")

    async def answer(self, request: Request, kind: type[Texts]) -> Response:
        """kind: of the body. Large ones are read when their turn comes: one is in memory at a time. Raises ApiError.
        """
        came = time.perf_counter()
        if self._inside > self._queue:
            raise ApiError(429, f"{self._queue} requests for embeddings are waiting already; try again later",
                           code="queue_full", retry_after=_RETRY_S)
        self._inside += 1
        try:
            asked = None if is_large(request) else await self._read(request, kind)
            async with self._turn:
                begun = time.perf_counter()
                asked = asked or await self._read(request, kind)
                vectors, tokens = await self._vectors(request, asked)
        finally:
            self._inside -= 1
        now = time.perf_counter()
        embedded = Embedded(vectors, tokens, self.name, (now - came, now - begun))
        return StreamingResponse(asked.answer(embedded), media_type="application/json")

    @property
    def name(self) -> str:
        """What the model is called."""
        return self._embedder.name

    async def _read(self, request: Request, kind: type[Texts]) -> Texts:
        asked: Texts = await self._bodies.read_within(request, kind, MOST_BODY, "so send fewer texts at once")
        asked.check(self.name)
        return asked

    async def _vectors(self, request: Request, asked: Texts) -> tuple[np.ndarray, int]:
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


async def in_parts(vectors: np.ndarray, text: Callable[[int, np.ndarray], str]) -> AsyncIterator[bytes]:
    """A list's JSON without its brackets, some vectors at once. text: of the index of one, and itself."""
    for start in range(0, len(vectors), _ROWS):
        rows = [text(index, vector) for index, vector in enumerate(vectors[start:start + _ROWS], start)]
        yield (("," if start else "") + ",".join(rows)).encode()


def numbers(vector: np.ndarray) -> str:
    """A vector as a list in JSON."""
    return f"[{','.join(f'{number:.9g}' for number in vector.tolist())}]"


def _object(index: int, vector: np.ndarray, as_base64: bool) -> str:
    value = _in_base64(vector) if as_base64 else numbers(vector)
    return f'{{"object":"embedding","index":{index},"embedding":{value}}}'


def _in_base64(vector: np.ndarray) -> str:
    """Its float32 values, as a string in JSON."""
    return f'"{base64.b64encode(vector.astype("<f4").tobytes()).decode()}"'
