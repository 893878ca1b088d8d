"""A process that downloads and converts a model: a server that did it itself would not stay in its memory budget."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from edgert.errors import DownloadError
from edgert.telling import AGAIN_S

from .bundles import BEGINNING

ENDING = (signal.SIGINT, signal.SIGTERM)
"""Signals at which the process tidies up and ends."""


class CancelledError(DownloadError):
    """It was cancelled."""


class Maker:
    """Makes the bundle of the catalogue's model `name`, from now on. Raises DownloadError where that cannot begin.

    progress: what it does, how much of that is done, and of how much; 0 where that is not known. Bytes where something
    is fetched, weights where they are converted.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.progress: tuple[str, int, int] = (BEGINNING, 0, 0)
        self._cancelled = False
        # What is blocked here is blocked in the process too, until it is ready for it: Python itself would show where
        # it was just importing something.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            self._process = subprocess.Popen([sys.executable, "-P", "-m", "edgert.apps.making", name], text=True,
                                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        except OSError as error:
            raise DownloadError(f"{name}: no process can be started that fetches it: {error.strerror or error}"
                                ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def wait(self) -> Path:
        """The bundle, when it is there. Called by one thread. Raises DownloadError, also where it is cancelled."""
        path, error = "", ""
        with self._process as process:
            for line in process.stdout or ():
                with suppress(ValueError):  # it was killed in the midst of one
                    said = json.loads(line)
                    path, error = said.get("path", path), said.get("error", error)
                    if "doing" in said:
                        self.progress = (said["doing"], said["done"], said["total"])
            status = process.wait()
        if self._cancelled:
            raise CancelledError(f"{self.name}: was cancelled")
        if path:
            return Path(path)
        raise DownloadError(error or f"{self.name}: the process that fetches and converts it ended with status "
                            f"{status}; is there enough memory?")

    def cancel(self) -> None:
        """End it, and wait for that. Nothing happens where it has ended."""
        self._cancelled = True
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
            if self._process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(AGAIN_S)
