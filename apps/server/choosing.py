"""The routes of the page's chooser of models. `edgert serve` has none of them: there the operator has chosen."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgert import EdgertError

from .bodies import Bodies
from .errors import refused
from .models import Models
from .responses import json_response

_PATH = "/edgert/models"
Endpoint = Callable[[Request], Awaitable[Response]]


class ChoiceRequest(Struct):
    """The body of a choice. id: as the list has it."""

    id: Annotated[str, Meta(max_length=8192)]


def choosing_routes(models: Models, bodies: Bodies, counted: Callable[[str, Endpoint], Endpoint]) -> list[BaseRoute]:
    """A list of the models, choosing one, and cancelling that. What comes of a choice is in the status.

    counted: of a path and an endpoint, an endpoint whose requests are counted.
    """
    async def listed(_request: Request) -> Response:
        return json_response({"models": await asyncio.to_thread(models.listed)})

    async def choose(request: Request) -> Response:
        asked = await bodies.read(request, ChoiceRequest, 0)
        try:
            models.choose(asked.id)
        except EdgertError as error:
            raise refused(error) from None
        return json_response(models.progress(), 202)

    async def cancel(_request: Request) -> Response:
        await asyncio.to_thread(models.cancel)
        return json_response(models.progress())

    return [Route(_PATH, counted(_PATH, listed)), Route(_PATH, counted(_PATH, choose), methods=["POST"]),
            Route(f"{_PATH}/cancel", counted(f"{_PATH}/cancel", cancel), methods=["POST"])]
