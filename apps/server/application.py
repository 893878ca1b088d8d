"""The routes: each reads a request, has it answered by the engine service, and writes what came of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgert import EdgertError, Embedder, LanguageModel

from . import page_files, tokenizing
from .bodies import Bodies
from .chat import Chat
from .choosing import choosing_routes
from .completions import Completions
from .embedding import EmbeddingRequest, Embeddings, Texts
from .errors import ApiError, failed, refused
from .metrics import CONTENT_TYPE, Metrics
from .models import Models
from .ollama.embedding import EmbedRequest
from .ollama.routes import Ollama, ollama_routes
from .requests import BudgetRequest, ChatRequest, CompletionRequest, Sampled
from .responses import OLLAMA, error_response, json_response
from .served import Served
from .service import EngineService
from .status import status
from .streams import EventStream, results
from .tickets import Work

Endpoint = Callable[[Request], Awaitable[Response]]
_STARTING_CONTEXT = 4096
"""Tokens that bodies are bounded for while there is no model that says how many it holds."""


@dataclass
class Application:
    """The server's routes. defaults: settings of `Model.generate` for requests that do not say otherwise. models: where
    the page may choose among several. window_memory: what the page's window takes, in bytes. embedder: answers
    /v1/embeddings."""

    service: EngineService
    served: Served
    defaults: dict[str, Any] = field(default_factory=dict)
    models: Models | None = None
    window_memory: Callable[[], int | None] | None = None
    embedder: Embedder | None = None

    def __post_init__(self) -> None:
        self._bodies = Bodies()
        self._embeddings = None
        if self.embedder is not None:
            self._embeddings = Embeddings(self.embedder, self._bodies, self.service.queue)
        self._metrics = Metrics(self.service)

    def asgi(self) -> Starlette:
        """The application, as servers want it."""
        routes: list[BaseRoute] = [
            Route("/", page_files.first), Route("/page/{path:path}", page_files.page),
            Route("/metrics", self._counted("/metrics", self._metrics_text)),
            Route("/edgert/status", self._status),
            Route("/edgert/budget", self._counted("/edgert/budget", self._budget), methods=["POST"])]
        if self.models is not None:
            routes += choosing_routes(self.models, self._bodies, self._counted)
        routes += ollama_routes(Ollama(self.service, self.served, self.defaults, self.models, self._read,
                                       self._metrics.seconds.observe, self.embedder), self._counted)
        routes.append(Route(f"{OLLAMA}embed", self._counted(f"{OLLAMA}embed", partial(self._embed, kind=EmbedRequest)),
                            methods=["POST"]))
        for path, endpoint, method in (
                ("/models", self._models, "GET"), ("/models/{name:path}", self._one_model, "GET"),
                ("/health", self._health, "GET"), ("/tokenizer_info", self._tokenizer_info, "GET"),
                ("/tokenize", self._tokenize, "POST"), ("/detokenize", self._detokenize, "POST"),
                ("/chat/completions", self._chat, "POST"), ("/completions", self._completions, "POST"),
                ("/embeddings", partial(self._embed, kind=EmbeddingRequest), "POST")):
            for prefix in ("/v1", ""):
                routes.append(Route(prefix + path, self._counted(path, endpoint), methods=[method]))
        return Starlette(routes=routes, exception_handlers={
            ApiError: _api_error, HTTPException: _http_error, Exception: _internal_error})

    def _counted(self, path: str, endpoint: Endpoint) -> Endpoint:
        """An endpoint whose requests are counted, also those that are refused."""
        async def counted(request: Request) -> Response:
            code = 500
            try:
                response = await endpoint(request)
                code = response.status_code
                return response
            except ApiError as error:
                code = error.status
                raise
            finally:
                self._metrics.requests.labels(path, str(code)).inc()

        return counted

    async def _chat(self, request: Request) -> Response:
        asked = await self._read(request, ChatRequest)
        return await self._answer(request, asked, lambda model: Chat(asked, model, self.served.name, self.defaults))

    async def _completions(self, request: Request) -> Response:
        asked = await self._read(request, CompletionRequest)
        return await self._answer(request, asked, lambda model: Completions(asked, model, self.served.name,
                                                                            self.defaults))

    async def _embed(self, request: Request, kind: type[Texts]) -> Response:
        if self._embeddings is None:
            raise ApiError(404, "this server has no model for embeddings; start it with --embeddings MODEL",
                           code="model_not_found")
        return await self._embeddings.answer(request, kind)

    async def _read(self, request: Request, kind: type[Any]) -> Any:
        watch = self.service.watch
        return await self._bodies.read(request, kind, _STARTING_CONTEXT if watch is None else watch.context)

    async def _answer(self, request: Request, asked: Sampled,
                      make: Callable[[LanguageModel], Chat | Completions]) -> Response:
        """Everything is checked before a stream opens: a refusal has a status of its own."""
        asked.check()
        started = time.monotonic()
        made: list[Chat | Completions] = []

        def works(model: LanguageModel) -> Sequence[Work]:
            try:
                made.append(make(model))
            except EdgertError as error:
                raise refused(error, asked.__struct_fields__) from None
            return made[0].works

        await self.service.wake()
        ticket = self.service.enter()
        await self.service.submit(ticket, works)
        if asked.stream:
            return EventStream(ticket, made[0])
        whole = json_response(made[0].whole([result async for result in results(request, ticket)]))
        self._metrics.seconds.observe(time.monotonic() - started)
        return whole

    async def _models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": self._listed()})

    async def _one_model(self, request: Request) -> Response:
        listed = {model["id"]: model for model in self._listed()}
        if request.path_params["name"] not in listed:
            raise ApiError(404, f"there is no such model here, only {' and '.join(listed)}", param="model",
                           code="model_not_found")
        return json_response(listed[request.path_params["name"]])

    def _listed(self) -> list[dict[str, Any]]:
        watch = self.service.watch
        lengths = {self.served.name: None if watch is None else watch.context}
        if self.embedder is not None:
            lengths.setdefault(self.embedder.name, self.embedder.max_tokens)
        return [{"id": name, "object": "model", "created": self.served.created, "owned_by": "edgert",
                 **({} if length is None else {"max_model_len": length})} for name, length in lengths.items()]

    async def _health(self, request: Request) -> Response:
        state = self.service.state
        well = state in ("ready", "unloaded")  # which the next request loads
        return json_response({"status": "ok" if well else state}, 200 if well else 503)

    def close(self) -> None:
        """End what is not the model's."""
        if self._embeddings is not None:
            self._embeddings.close()

    async def _metrics_text(self, request: Request) -> Response:
        return Response(self._metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def _status(self, request: Request) -> Response:
        return json_response(await self._said())

    async def _said(self) -> dict[str, Any]:
        said = status(self.service, self.served.name, 0 if self.embedder is None else self.embedder.used)
        if self.models is not None:
            said["chooser"] = self.models.progress()
        if self.window_memory is not None:
            said["window"] = await asyncio.to_thread(self.window_memory)
        return said

    async def _budget(self, request: Request) -> Response:
        asked = await self._read(request, BudgetRequest)
        await self.service.reload(asked.memory)
        return json_response(await self._said())

    async def _tokenize(self, request: Request) -> Response:
        asked = await self._read(request, tokenizing.TokenizeRequest)
        return json_response(await self._prepared(lambda model: tokenizing.tokenized(model, asked)))

    async def _detokenize(self, request: Request) -> Response:
        asked = await self._read(request, tokenizing.DetokenizeRequest)
        return json_response(await self._prepared(lambda model: tokenizing.detokenized(model, asked)))

    async def _tokenizer_info(self, request: Request) -> Response:
        return json_response(await self._prepared(tokenizing.information))

    async def _prepared(self, make: Callable[[LanguageModel], Any]) -> Any:
        await self.service.wake()
        return await self.service.prepare(make)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, request.url.path)


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette refuses: paths and methods that there are not."""
    assert isinstance(error, HTTPException)
    what = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not for this path"}
    return error_response(ApiError(error.status_code, what.get(error.status_code, error.detail)), request.url.path)


async def _internal_error(request: Request, error: Exception) -> Response:
    return error_response(failed(error), request.url.path)
