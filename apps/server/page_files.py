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


async def page(request: Request) -> Response:
    """A file of the page; without a path its first."""
    name = request.path_params.get("path", "index.html")
    path = (FOLDER / name).resolve()
    kind = _TYPES.get(path.suffix)
    if kind is None or not path.is_relative_to(FOLDER.resolve()) or not path.is_file():
        raise ApiError(404, "there is no such file", code="not_found")
    return Response(path.read_bytes(), headers=_HEADERS, media_type=kind)
