"""The bundle that is served, by which its requests know it; another one takes its place when it has been loaded."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgert import LanguageModel

from .service import OpenModel


class Served:
    """path: of the bundle that was opened last, or will be first. load: loads the bundle at a path with a memory
    budget; with None for what the command line asked for."""

    def __init__(self, path: Path, load: Callable[[Path, int | str | None], LanguageModel]) -> None:
        self.path = path
        self._load = load

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def created(self) -> int:
        """When its file was made, in seconds since 1970; 0 where there is none."""
        with suppress(OSError):
            return int(self.path.stat().st_mtime)
        return 0

    def opening(self, path: Path) -> OpenModel:
        """What opens the bundle at `path`, which is the one that is served from then on."""
        def open_model(memory: int | str | None) -> LanguageModel:
            model = self._load(path, memory)
            self.path = path
            return model

        return open_model
