"""The catalogue's models: fetched and converted where they are not in the models' folder yet. Those of families that
edgert does not know are not converted: what is opened is their GGUF file."""

from pathlib import Path

import edgert
from edgert.download import Progress, bundle_path
from edgert.errors import DownloadError
from edgert.locking import making

BEGINNING, CONVERTING = "beginning", "converting"
WAITING_FOR_BUNDLE = "waiting for another process that fetches and converts it"


def make_bundle(name: str, progress: Progress) -> Path:
    """What is opened for the catalogue's model `name`. If it is missing, one process downloads and converts it.

    progress: called as `edgert.pull` does, which downloads; with BEGINNING before that, with CONVERTING and numbers of
    weights after it, and with WAITING_FOR_BUNDLE where another process is at it. Raises EdgertError.
    """
    path = bundle_path(name)
    if path.exists():
        return path
    if path.suffix != ".edge":
        return edgert.pull(name, progress=progress)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with making(path, lambda: progress(WAITING_FOR_BUNDLE, 0, 0)):
            if not path.exists():
                progress(BEGINNING, 0, 0)
                edgert.convert(str(edgert.pull(name, progress=progress)), path,
                               progress=lambda what, done, total: progress(CONVERTING, done, total))
    except OSError as error:
        raise DownloadError(f"{name}: cannot be stored in {path.parent}: {error.strerror or error}") from error
    return path
