"""JSON objects, one in a line: Ollama's streams."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import ApiError
from ..responses import error_response
from ..streams import Ending, ending_with_client


class LineStream(Response):
    """The objects of `lines`, as they come. It opens with the first: what goes wrong before that has a status of its
    own, what goes wrong later is the last line. ending: what ends when the client leaves."""

    media_type = "application/x-ndjson"

    def __init__(self, ending: Ending, lines: AsyncIterator[Any]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._ending, self._lines = ending, lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        async with ending_with_client(receive, self._ending):
            try:
                async for value in self._lines:
                    if not begun:
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                        begun = True
                    await send(_line(value))
            except ApiError as error:
                if not begun:
                    await error_response(error, scope["path"])(scope, receive, send)
                    return
                await send(_line({"error": error.message}))
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _line(value: Any) -> dict[str, Any]:
    return {"type": "http.response.body", "body": msgspec.json.encode(value) + b"\n", "more_body": True}
