"""The routes of Ollama's interface."""

import asyncio
import math
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgert import EdgertError, Embedder, LanguageModel

from ..errors import ApiError, refused
from ..models import Choice, Models
from ..responses import OLLAMA, json_response
from ..served import Served
from ..service import EngineService
from ..streams import ending_with_client, results
from ..tickets import Work
from .answers import Answer, ChatAnswer, GenerateAnswer, Times, chat_said, generate_said
from .details import Details
from .durations import time_text
from .embedding import embedding_entry, embedding_shown
from .keep_alive import KeepAlive
from .lines import LineStream
from .names import find, plain
from .pulling import Pull
from .requests import Asking, ChatRequest, GenerateRequest, Named

Endpoint = Callable[[Request], Awaitable[Response]]
_VERSION = "0.12.11"
"""Of Ollama, whose interface this is: clients look whether it is new enough for them."""
_ASKING_S = 0.05
"""How often is looked whether a model that is being loaded is there."""


class Ollama:
    """models: where clients may change to other models, fetch and delete them; None where there is one only. read: the
    body of a request. observe: counts how long an answer took, in seconds. embedder: listed beside the models."""

    def __init__(self, service: EngineService, served: Served, defaults: dict[str, Any], models: Models | None,
                 read: Callable[[Request, type[Any]], Awaitable[Any]], observe: Callable[[float], None],
                 embedder: Embedder | None = None) -> None:
        self._service, self._served, self._defaults, self._models = service, served, defaults, models
        self._read, self._observe, self._embedder = read, observe, embedder
        self._details, self._keep_alive = Details(), KeepAlive(service)
        self._one_change = asyncio.Lock()

    async def version(self, _request: Request) -> Response:
        return json_response({"version": _VERSION})

    async def tags(self, _request: Request) -> Response:
        choices = [choice for choice in await self._choices() if choice.size is not None]
        entries = await asyncio.to_thread(self._details.entries, choices)
        if self._embedder is not None and (entry := embedding_entry(self._embedder)) is not None:
            entries.append(entry)
        return json_response({"models": entries})

    async def loaded(self, _request: Request) -> Response:
        return json_response({"models": await self._loaded()})

    async def _loaded(self) -> list[dict[str, Any]]:
        """What is in memory. Its size is what the memory plan uses of the budget, for the whole process."""
        watch = self._service.watch
        if self._service.state != "ready" or watch is None:
            return []
        entry = await asyncio.to_thread(self._details.entry, self._current)
        return [entry | {"size": sum(watch.parts.values()), "size_vram": 0, "context_length": watch.context,
                         "expires_at": time_text(self._keep_alive.expires_at)}]

    async def show(self, request: Request) -> Response:
        asked = (await self._read(request, Named)).asked
        if self._embedder is not None and plain(asked) == plain(self._embedder.name):
            return json_response(embedding_shown(self._embedder))
        choice = await self._find(asked)
        watch = self._service.watch
        return json_response(await asyncio.to_thread(
            partial(self._details.shown, choice, sys.maxsize if watch is None else watch.context,
                    current=watch is not None and self._is_current(choice))))

    async def chat(self, request: Request) -> Response:
        times, asked = Times(), await self._read(request, ChatRequest)
        return await self._answer(request, asked, times, chat_said("", []),
                                  lambda model: ChatAnswer(asked, model, self._defaults, times))

    async def generate(self, request: Request) -> Response:
        times, asked = Times(), await self._read(request, GenerateRequest)
        return await self._answer(request, asked, times, generate_said(""),
                                  lambda model: GenerateAnswer(asked, model, self._defaults, times))

    async def _answer(self, request: Request, asked: Asking, times: Times, nothing: dict[str, Any],
                      make: Callable[[LanguageModel], Answer]) -> Response:
        """nothing: what an answer without text is."""
        asked.check()
        keeps, choice = asked.keeps, await self._find(asked.model)
        if asked.empty:
            await self._load_or_unload(choice, keeps)
            return json_response({"model": asked.model, "created_at": time_text(), **nothing, "done": True,
                                  "done_reason": "unload" if keeps == 0 else "load"})
        await self._load(choice)
        times.loaded = time.perf_counter()
        made: list[Answer] = []

        def works(model: LanguageModel) -> Sequence[Work]:
            made.append(make(model))
            return made[0].works

        ticket = self._service.enter()
        if keeps is not None:
            self._keep_alive.keep(keeps)
        await self._service.submit(ticket, works)
        if asked.stream is not False:
            return LineStream(ticket, made[0].lines(ticket))
        whole = made[0].whole([result async for result in results(request, ticket)])
        self._observe(time.perf_counter() - times.came)
        return json_response(whole)

    async def _load_or_unload(self, choice: Choice, keeps: float | None) -> None:
        """What a request asks for that has nothing to answer. A model that is answering is unloaded after that."""
        if keeps != 0:
            await self._load(choice)
        if keeps is not None and self._is_current(choice):
            self._keep_alive.keep(keeps)
            if keeps == 0 and await self._service.unload():
                self._keep_alive.keep(math.inf)

    async def _load(self, choice: Choice) -> None:
        """Have a model be the one that answers; requests that come meanwhile for another one wait. Raises ApiError."""
        async with self._one_change:
            while self._service.state == "loading":
                await asyncio.sleep(_ASKING_S)
            if self._models is not None and not self._is_current(choice):
                await self._models.change_to(choice)
            await self._service.wake()

    async def pull(self, request: Request) -> Response:
        asked: Named = await self._read(request, Named)
        choice = await self._find(asked.asked, absent=True)
        if choice.size is not None:
            return json_response({"status": "success"})
        assert self._models is not None
        try:
            pull = Pull(self._models, choice)
        except EdgertError as error:
            raise refused(error) from None
        if asked.stream is not False:
            return LineStream(pull, pull.lines())
        async with ending_with_client(request.receive, pull):
            return json_response([line async for line in pull.lines()][-1])

    async def delete(self, request: Request) -> Response:
        choice = await self._find((await self._read(request, Named)).asked)
        if self._models is None:
            raise ApiError(403, f"{choice.name} is what this server was started with; with --chooser others can be "
                           "deleted")
        await asyncio.to_thread(self._models.remove, choice)
        return Response()

    @property
    def _current(self) -> Choice:
        """The model that answers."""
        path = self._served.path
        return Choice(str(path), self._served.name, "", path, path.stat().st_size if path.is_file() else None)

    def _is_current(self, choice: Choice) -> bool:
        return self._models is None or self._models.is_current(choice)

    async def _choices(self) -> list[Choice]:
        """All models, first the one that answers."""
        if self._models is None:
            return [self._current]
        choices = await asyncio.to_thread(self._models.choices)
        return sorted(choices, key=lambda choice: not self._is_current(choice))

    async def _find(self, asked: str, *, absent: bool = False) -> Choice:
        """The model of that name. absent: also one that is not here, but could be fetched. Raises ApiError."""
        choices = [choice for choice in await self._choices() if absent or choice.size is not None]
        if (choice := find(asked, choices)) is not None:
            return choice
        what = f"model {asked[:200]!r} not found"
        if absent:
            others = [choice.name for choice in choices]
            raise ApiError(404, f"{what}; there are {', '.join(others)}" if self._models is not None else
                           f"{what}; this server has {others[0]} only, without --chooser it fetches no other one")
        raise ApiError(404, what)


def ollama_routes(ollama: Ollama, counted: Callable[[str, Endpoint], Endpoint]) -> list[BaseRoute]:
    """counted: of a path and an endpoint, an endpoint whose requests are counted."""
    return [Route(path, counted(path, endpoint), methods=[method]) for path, endpoint, method in (
        (f"{OLLAMA}version", ollama.version, "GET"), (f"{OLLAMA}tags", ollama.tags, "GET"),
        (f"{OLLAMA}ps", ollama.loaded, "GET"), (f"{OLLAMA}show", ollama.show, "POST"),
        (f"{OLLAMA}chat", ollama.chat, "POST"), (f"{OLLAMA}generate", ollama.generate, "POST"),
        (f"{OLLAMA}pull", ollama.pull, "POST"), (f"{OLLAMA}delete", ollama.delete, "DELETE"))]
