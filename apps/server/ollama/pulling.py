"""/api/pull: a model of the catalogue is fetched and converted, and the client is told how far that is."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from edgert.download import catalogue

from ...bundles import BEGINNING, CONVERTING
from ..errors import ApiError
from ..models import Choice, Models

_TELLING_S = 0.25
"""How often is told how far it is."""
_SHORT = 12
_FIRST: dict[str, Any] = {"status": "pulling manifest"}


class Pull:
    """Fetches and converts a model. A client that leaves ends what it has begun; what has been fetched stays, and the
    next one goes on from there."""

    def __init__(self, models: Models, choice: Choice) -> None:
        """Raises ApiError, and EdgertError where it cannot begin."""
        self._models, self._choice = models, choice
        self._sha256 = catalogue()[choice.name].sha256
        self._begun = models.on_its_way != choice.id
        models.fetch(choice)

    def end(self) -> None:
        """End it, if it is under way and was begun here."""
        if self._begun and self._models.on_its_way == self._choice.id:
            asyncio.get_running_loop().run_in_executor(None, self._models.cancel)

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """What Ollama says while it pulls. Raises ApiError."""
        said = _FIRST
        yield said
        while self._models.on_its_way == self._choice.id:
            if (now := self._progress()) != said:
                said = now
                yield said
            await asyncio.sleep(_TELLING_S)
        if not self._choice.path.is_file():
            raise ApiError(500, self._models.error or f"{self._choice.name}: was cancelled")
        yield {"status": "success"}

    def _progress(self) -> dict[str, Any]:
        """Clients show what has a digest as a bar, another for each digest: weights are no bytes, so converting has one
        of its own."""
        doing, done, total = self._models.doing
        if not total:
            return _FIRST if doing == BEGINNING else {"status": doing}
        if doing == CONVERTING:
            digest = f"{doing}:{self._sha256[:_SHORT]}"
        else:
            doing, digest = "pulling", f"sha256:{self._sha256}"
        return {"status": f"{doing} {self._sha256[:_SHORT]}", "digest": digest, "total": total, "completed": done}
