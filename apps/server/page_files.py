"""The page's files. What they may do is bounded by a strict content security policy: an answer is untrusted text."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from .errors import ApiError

FOLDER = Path(__file__).parents[1] / "page"
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
          ".mjs": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
          ".png": "image/png", ".woff2": "font/woff2", ".json": "application/json", ".webmanifest":
          "application/manifest+json"}
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin"}


async def first(request: Request) -> Response:
    """The page, for browsers, which ask for HTML by name. Many clients of Ollama ask whether it is there, and take this
    answer only."""
    if "text/html" in request.headers.get("accept", ""):
        response = await page(request)
    else:
        response = Response("Ollama is running", media_type="text/plain")
    response.headers["vary"] = "Accept"
    return response


async def page(request: Request) -> Response:
    """A file of the page; without a path its first."""
    name = request.path_params.get("path", "index.html")
    kind = _TYPES.get(Path(name).suffix)
    content = None if kind is None else _content(name)
    if content is None:
        raise ApiError(404, "there is no such file", code="not_found")
    return Response(content, headers=_HEADERS, media_type=kind)


def _content(name: str) -> bytes | None:
    """What a file of the page holds; None where there is none of that name."""
    try:
        path = (FOLDER / name).resolve()
        return path.read_bytes() if path.is_relative_to(FOLDER.resolve()) else None
    except (OSError, ValueError):  # not there, or a name that no file can have
        return None
