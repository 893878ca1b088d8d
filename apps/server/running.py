"""Running the server: a socket that is open before the model is loaded, and an end that leaves nothing behind."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn

from edgert import Embedder
from edgert.commands.gguf import end_conversions
from edgert.errors import EdgertError
from edgert.terminal import show
from edgert.watching import map_large_blocks

from .access import LOOPBACK, Access
from .application import Application
from .models import Models
from .served import Served
from .service import EngineService

_CONNECTIONS = 128
"""Connections at once, at most; each takes memory."""
_ENDING_S = 3
"""Seconds that connections have to end when the server does."""


def serve(served: Served, *, host: str, port: int, keys: Sequence[str], queue: int, defaults: dict[str, Any],
          follow_reads: bool, parallel: int = 1, chooser: bool = False,
          window_memory: Callable[[], int | None] | None = None, embedder: Embedder | None = None,
          when_open: Callable[[str], None] = lambda url: None) -> None:
    """Serve until a signal ends it. when_open: called with the server's address when it can be asked.

    parallel: how many requests are answered at once. chooser: let the page choose among models. A bundle that is not
    there is then made, if it is one of the catalogue's; and a model that cannot be loaded does not end the server.
    window_memory: what the page's window takes, in bytes. embedder: answers /v1/embeddings; it is closed in the end.
    Raises EdgertError where the address cannot be had, or the model not be loaded.
    """
    if host not in LOOPBACK and not keys:
        raise EdgertError(f"--host {host} lets other machines in; give them a key with --api-key-file")
    map_large_blocks()
    service = EngineService(served.opening(served.path), queue, follow_reads, parallel)
    models = Models(service, served) if chooser else None
    application = Application(service, served, defaults, models, window_memory, embedder)
    app = Access(application.asgi(), keys=keys, any_host=host not in LOOPBACK)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of clients that left, which is no news
    config = uvicorn.Config(app, http="h11", loop="asyncio", ws="none", lifespan="off", log_config=None,
                            access_log=False, server_header=False, limit_concurrency=_CONNECTIONS,
                            timeout_graceful_shutdown=_ENDING_S)
    with _listening(host, port) as listener:
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        if models is not None and not served.path.is_file():
            service.open_model = models.first(served.name)
        server = _Server(config, application, models, lambda: when_open(address))
        try:
            server.run(sockets=[listener])
        finally:
            if models is not None:
                models.close()
            application.close()
        service.stop()
    if service.error is not None and models is None:
        raise service.error


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises EdgertError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise EdgertError(f"--host {host} --port {port}: {(error.strerror or str(error)).lower()}; choose another"
                          ) from None


class _Server(uvicorn.Server):
    """Loads the model when the socket is open, and ends answers when it is asked to end."""

    def __init__(self, config: uvicorn.Config, application: Application, models: Models | None,
                 when_open: Callable[[], None]) -> None:
        super().__init__(config)
        self._application, self._service = application, application.service
        self._models, self._when_open = models, when_open

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()

        def settled() -> None:
            with contextlib.suppress(RuntimeError):  # the server was ended while the model was being loaded
                loop.call_soon_threadsafe(self._settled)

        self._service.on_settled = settled
        self._service.start()  # all that the server needs is in memory now: the memory plan counts it
        self._when_open()

    def _settled(self) -> None:
        if self._service.state != "failed":
            show("ready", err=True)
        elif self._models is None:
            self.should_exit = True
        elif not self.should_exit:
            show(f"edgert: {self._service.error}; choose another model in the page", err=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The signals that end a server end it in order: uvicorn would send itself the signal once more at the end."""
        if threading.current_thread() is not threading.main_thread():  # signals come to that one alone
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.end_all()
        end_conversions()
        await asyncio.to_thread(self._application.close)
        if self._models is not None:
            await asyncio.to_thread(self._models.close)
        await super().shutdown(sockets)
