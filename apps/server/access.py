"""Who may use the server: a browser's pages only where they come from this machine, others with the key.

A page of any web site can make its visitor's browser send requests to a server on the visitor's own machine, also under
a name of its own that it lets point there (DNS rebinding). So the name that a request is addressed to, and the site
that it comes from, must be this machine's; without a key nothing else than loopback is served at all.
"""

import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from h11 import LocalProtocolError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .responses import error_response

LOOPBACK = frozenset(["localhost", "127.0.0.1", "::1"])
_WITHOUT_KEY = ("/page/", "/health", "/v1/health")
_PREFLIGHT_S = "600"


class Access:
    """Lets requests through to `app`, or refuses them.

    keys: one of them must come with each request but those for the page and for /health; none where there are none.
    any_host: whether the server may be addressed by any name: only with keys, which another site's page does not have.
    """

    def __init__(self, app: ASGIApp, *, keys: Iterable[str] = (), any_host: bool = False) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._any_host = any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        try:
            self._check_names(headers, origin)
            if origin is not None and scope["method"] == "OPTIONS":
                await _preflight(headers, origin)(scope, receive, send)
                return
            self._check_key(scope["path"], headers)
        except ApiError as error:
            await error_response(error, scope["path"])(scope, receive, send)
            return

        async def send_to_origin(message: Message) -> None:
            if message["type"] == "http.response.start" and origin is not None:
                MutableHeaders(scope=message).update(_for_origin(origin))
            await send(message)

        try:
            await self._app(scope, receive, send_to_origin)
        except LocalProtocolError:  # the body is not as HTTP has it: uvicorn has said so, and ended the connection
            while (await receive())["type"] != "http.disconnect":
                pass

    def _check_names(self, headers: Headers, origin: str | None) -> None:
        host = headers.get("host", "")
        if not self._any_host and _name(f"//{host}") not in LOOPBACK:
            raise ApiError(403, "this server is for this machine only; address it as 127.0.0.1 or localhost",
                           code="wrong_host")
        if origin is not None and _name(origin) not in LOOPBACK and not _is_own(origin, host):
            raise ApiError(403, "pages of other sites may not use this server", code="wrong_origin")

    def _check_key(self, path: str, headers: Headers) -> None:
        if not self._keys or path == "/" or path.startswith(_WITHOUT_KEY[0]) or path in _WITHOUT_KEY[1:]:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = [hmac.compare_digest(given.strip().encode("utf-8", "replace"), key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(right):
            raise ApiError(401, "a key is needed: send it as Authorization: Bearer KEY" if not given else
                           "that is not the key of this server", code="invalid_api_key")


def _name(address: str) -> str | None:
    """The host's name in an address; None where it is none."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018  raises ValueError
        return parts.hostname if parts.username is None else None
    except ValueError:
        return None


def _is_own(origin: str, host: str) -> bool:
    """Whether a page was served by this server, under the name that it is addressed by now."""
    return origin in (f"http://{host}", f"https://{host}")


def _for_origin(origin: str) -> dict[str, str]:
    return {"access-control-allow-origin": origin, "vary": "Origin",
            "access-control-expose-headers": "retry-after, x-request-id"}


def _preflight(headers: Headers, origin: str) -> Response:
    return Response(status_code=204, headers={
        **_for_origin(origin), "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": headers.get("access-control-request-headers", ""),
        "access-control-max-age": _PREFLIGHT_S})
