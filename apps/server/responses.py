"""JSON and errors as responses."""

from typing import Any

import msgspec
from starlette.responses import Response

from .errors import ApiError

OLLAMA = "/api/"
"""What the paths of Ollama's interface begin with."""


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def error_response(error: ApiError, path: str) -> Response:
    """A refusal, as clients of that path expect it: Ollama's want the sentence alone. It closes the connection where a
    body may still be on its way that nobody reads."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status in (408, 413):
        headers["connection"] = "close"
    return json_response({"error": error.message} if path.startswith(OLLAMA) else error.body, error.status, headers)
