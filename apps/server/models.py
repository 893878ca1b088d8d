"""The models that the page may choose from: those that are here, and those of the catalogue that can be fetched."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgert import EdgertError, LanguageModel
from edgert.download import bundle_path, bundles_here, bytes_there, catalogue, models_folder

from ..maker import CancelledError, Maker
from .errors import ApiError
from .served import Served
from .service import EngineService, OpenModel

_ASKING_S = 0.1
"""How often is looked whether a model that is being loaded is there."""


@dataclass(frozen=True)
class Choice:
    """A model that may be chosen. id: by which the page names it. path: of its bundle. size: of that, in bytes; None
    where it is not there. download: bytes that have to be fetched, and here, of them, those that have been."""

    id: str
    name: str
    description: str
    path: Path
    size: int | None
    download: int = 0
    here: int = 0


@dataclass
class _Choosing:
    """What is under way. maker: makes the bundle, where it was not there."""

    id: str
    name: str
    maker: Maker | None = None


class Models:
    """Lists the models, and changes the one that answers. One change is under way at a time.

    error: why the last one failed, in one sentence.
    """

    def __init__(self, service: EngineService, served: Served) -> None:
        self.error: str | None = None
        self._service, self._served, self._given = service, served, served.path
        self._choosing: _Choosing | None = None
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def choices(self) -> list[Choice]:
        """The bundle of the command line and those in the models' folder by their names, then what the catalogue has
        besides."""
        known = catalogue()
        described = {bundle_path(name).resolve(): entry.description for name, entry in known.items()}
        paths = {path.resolve(): path for path in (*bundles_here(), *map(bundle_path, known), self._given)}
        here = [Choice(_text(path), _text(path.stem), described.get(resolved, ""), path, size)
                for resolved, path in paths.items() if (size := _size(path)) is not None]
        absent = [Choice(f"catalogue:{name}", name, entry.description, path, None, entry.size,
                         bytes_there(entry, models_folder()))
                  for name, entry in known.items() if _size(path := bundle_path(name)) is None]
        return sorted(here, key=lambda choice: (choice.name.lower(), choice.id)) + absent

    def listed(self) -> list[dict[str, Any]]:
        """The models as the page gets them."""
        return [{"id": choice.id, "name": choice.name, "description": choice.description, "size": choice.size,
                 "download": choice.download, "here": choice.here, "current": self.is_current(choice)}
                for choice in self.choices()]

    def is_current(self, choice: Choice) -> bool:
        """Whether it is the model that answers, or would if it were not unloaded."""
        return choice.path == self._served.path and choice.size is not None and self._service.state != "failed"

    def progress(self) -> dict[str, Any]:
        """What is under way, and what went wrong: a part of the status."""
        choosing, said = self._choosing, None
        if choosing is not None:
            doing, done, total = self.doing
            said = {"id": choosing.id, "name": choosing.name, "doing": doing, "done": done, "total": total,
                    "cancellable": choosing.maker is not None}
        return {"choosing": said, "error": self.error}

    @property
    def on_its_way(self) -> str | None:
        """The id of the model that is being fetched or loaded."""
        return self._choosing.id if self._choosing is not None else None

    @property
    def doing(self) -> tuple[str, int, int]:
        """What is done with that, how much of it, and of how much; 0 where that is not known."""
        maker = self._choosing.maker if self._choosing is not None else None
        return ("loading", 0, 0) if maker is None else maker.progress

    def choose(self, name: str) -> None:
        """Change to the model with the id `name`; first it is fetched and converted, if it is not here. Returns at
        once. Raises ApiError, and EdgertError where no process can be started for that."""
        if self._is_on_its_way(name):
            return
        choice = next((choice for choice in self.choices() if choice.id == name), None)
        if choice is None:
            raise ApiError(404, "there is no such model here any more", param="id", code="model_not_found")
        self.error = None
        if self.is_current(choice):
            return
        self._begin(choice)
        self._task = asyncio.create_task(self._change(choice.path))

    def _is_on_its_way(self, name: str) -> bool:
        """Whether the model with the id `name` is. Raises ApiError where another one is."""
        if (choosing := self._choosing) is None:
            return False
        if choosing.id != name:
            raise ApiError(409, f"{choosing.name} is on its way; cancel that first, or wait for it", code="choosing")
        return True

    async def change_to(self, choice: Choice) -> None:
        """Change to a model that is here, and wait until it answers. Raises ApiError."""
        self.choose(choice.id)
        if self._task is not None:
            await asyncio.wait([self._task])
        if not self.is_current(choice):
            raise ApiError(500, self.error or f"{choice.name} is not here any more", code="unavailable")

    def fetch(self, choice: Choice) -> None:
        """Make the bundle of a model that is not here, and change to nothing. Returns at once. Raises ApiError, and
        EdgertError where no process can be started for that."""
        if not self._is_on_its_way(choice.id):
            self.error = None
            self._begin(choice)
            self._task = asyncio.create_task(self._fetch())

    def remove(self, choice: Choice) -> None:
        """Delete a bundle of the models' folder. Raises ApiError for others, and for one that is in use."""
        if self.is_current(choice):
            raise ApiError(409, f"{choice.name} is in use; change to another model first", code="in_use")
        if choice.path.parent.resolve() != models_folder().resolve():
            raise ApiError(403, f"{choice.name} is not in the models' folder, so it is not deleted", code="not_deleted")
        try:
            choice.path.unlink()
        except OSError as error:
            raise ApiError(500, f"{choice.name} cannot be deleted: {error.strerror or error}") from None

    def first(self, name: str) -> OpenModel:
        """Begin to make the catalogue's model `name`. What comes back waits for that, then opens it."""
        path = bundle_path(name)
        self._begin(Choice(f"catalogue:{name}", name, "", path, None))

        def open_model(memory: int | str | None) -> LanguageModel:
            try:
                self._make()
                return self._served.opening(path)(memory)
            except CancelledError:
                raise
            except EdgertError as error:
                self.error = str(error)
                raise
            finally:
                self._choosing = None

        return open_model

    def cancel(self) -> None:
        """End what is being fetched or converted, and wait for that; forget what went wrong."""
        self.error = None
        if (choosing := self._choosing) is not None and (maker := choosing.maker) is not None:
            maker.cancel()

    def close(self) -> None:
        """Begin nothing new, and end what is under way."""
        self._closing = True
        self.cancel()

    def _begin(self, choice: Choice) -> None:
        if self._closing:
            raise ApiError(503, "the server is stopping", code="unavailable")
        self._choosing = _Choosing(choice.id, choice.name, Maker(choice.name) if choice.size is None else None)

    def _make(self) -> None:
        """Wait for the bundle that is being made. Raises DownloadError."""
        choosing = self._choosing
        if choosing is not None and choosing.maker is not None:
            choosing.maker.wait()
            choosing.maker = None

    async def _fetch(self) -> None:
        try:
            await asyncio.to_thread(self._make)
        except CancelledError:
            pass
        except EdgertError as error:
            self.error = str(error)
        finally:
            self._choosing = None

    async def _change(self, path: Path) -> None:
        try:
            await asyncio.to_thread(self._make)
            while self._service.state == "loading":
                await asyncio.sleep(_ASKING_S)
            await self._service.reload(None, self._served.opening(path))
        except CancelledError:
            pass
        except (EdgertError, ApiError) as error:
            self.error = str(error)
        finally:
            self._choosing = None


def _size(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _text(name: str | Path) -> str:
    """A file's name as text, also where it is none."""
    return os.fsencode(name).decode("utf-8", "replace")
