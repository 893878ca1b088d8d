"""The bodies of requests: read within bounds of size and time, and validated."""

import asyncio
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from .errors import ApiError, invalid

S = TypeVar("S", bound=msgspec.Struct)

LEAST_MOST, PER_TOKEN, MOST = 256 << 10, 64, 8 << 20
"""Bytes of a body, at most: the first number and so many for each token of the context, but no more than the last. What
a body is parsed into takes many times its size, and has to fit into the memory budget."""
_LARGE = 64 << 10
"""Of bodies larger than this one is in memory at a time."""
_PATIENCE_S = 60.0
"""How long a body may take to arrive."""


class Bodies:
    """Reads bodies."""

    def __init__(self) -> None:
        self._one_large = asyncio.Semaphore(1)

    async def read(self, request: Request, kind: type[S], context: int) -> S:
        """The body as a struct. context: of the model, in tokens. Raises ApiError."""
        return await self.read_within(request, kind, min(LEAST_MOST + PER_TOKEN * context, MOST),
                                      "more than the model's context could hold")

    async def read_within(self, request: Request, kind: type[S], most: int, otherwise: str) -> S:
        """The same of a body of so many bytes, at most. otherwise: what is said of larger ones. Raises ApiError."""
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > most:
            raise _too_large(most, otherwise)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                if not is_large(request):
                    return _parsed(await _received(request, most, otherwise), kind)
                async with self._one_large:
                    return _parsed(await _received(request, most, otherwise), kind)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {_PATIENCE_S:.0f} seconds") from None
        except ClientDisconnect:
            raise ApiError(499, "the client has gone") from None


def is_large(request: Request) -> bool:
    """Whether a body is large, or may be."""
    length = request.headers.get("content-length", "")
    return not (length.isdecimal() and int(length[:20]) <= _LARGE)


async def _received(request: Request, most: int, otherwise: str) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large(most, otherwise)
        parts.append(part)
    return b"".join(parts)


def _parsed(body: bytes, kind: type[S]) -> S:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(error) from None


def _too_large(most: int, otherwise: str) -> ApiError:
    return ApiError(413, f"the body is larger than {most} bytes, {otherwise}", code="body_too_large")
