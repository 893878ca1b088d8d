"""For how long the model stays in memory when nobody asks it anything."""

import asyncio
import math
import time
from datetime import datetime

from ..service import EngineService
from .durations import time_after

_LEAST_S = 0.05
"""How often is looked whether an answer is over that the model was only kept for."""


class KeepAlive:
    """Unloads the model when nobody has used it for as long as the client wanted that said so last. A model that has
    just been loaded is kept for ever, until one says otherwise."""

    def __init__(self, service: EngineService) -> None:
        self._service = service
        self._seconds, self._load = math.inf, 0
        self._task: asyncio.Task[None] | None = None

    def keep(self, seconds: float) -> None:
        """Keep the model for so long after it was used."""
        self._seconds, self._load = seconds, self._service.loads
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._unload_in_time()) if math.isfinite(seconds) else None

    @property
    def _holds(self) -> bool:
        """Whether what was wanted was of the model that is loaded now."""
        return self._load == self._service.loads

    @property
    def _left(self) -> float:
        """Seconds that it will be kept, if nobody asks."""
        return self._service.used + self._seconds - time.monotonic() if self._holds else math.inf

    @property
    def expires_at(self) -> datetime:
        """When it will be unloaded, if nobody asks until then."""
        return time_after(max(self._left, 0))

    async def _unload_in_time(self) -> None:
        while self._holds and self._service.state != "unloaded":
            if (left := self._left) <= 0 and await self._service.unload():
                return
            await asyncio.sleep(min(max(left, _LEAST_S), 3600))
