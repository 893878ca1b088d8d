"""What is kept in the models' folder: bundles, files that were fetched, models for embeddings."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edgert.download import bundles_here, models_folder
from edgert.errors import ModelError
from edgert.models import catalog

MODEL, CONVERTED, FETCHED, EMBEDDINGS = "model", "converted", "fetched", "embeddings"


@dataclass(frozen=True)
class Kept:
    """name: what `edgert rm` takes. kind: a model's bundle; one that was made of a GGUF file when that was opened; a
    file that was fetched to make a bundle of; or a folder of a model for embeddings. size: bytes."""

    name: str
    kind: str
    path: Path
    size: int
    changed: datetime


def all_kept() -> list[Kept]:
    """All that is there, by kind and name. What other processes are just removing is left out."""
    folder, found = models_folder(), []
    for kind, path in _paths(folder):
        try:
            files = [path, *(file for file in path.rglob("*") if file.is_file())] if path.is_dir() else [path]
            stats = [file.stat() for file in files]
        except OSError:
            continue
        name = path.stem if kind == MODEL else str(path.relative_to(folder))
        found.append(Kept(name, kind, path, sum(stat.st_size for stat in stats[path.is_dir():]),
                          datetime.fromtimestamp(max(stat.st_mtime for stat in stats)).astimezone()))
    return found


def _paths(folder: Path) -> Iterator[tuple[str, Path]]:
    yield from ((MODEL, path) for path in bundles_here())
    yield from ((CONVERTED, path) for path in sorted((folder / "converted").glob("*.edge")))
    fetched = sorted({folder / entry.file for entry in catalog.load().values()})
    yield from ((FETCHED, path) for path in fetched if path.is_file())
    yield from ((EMBEDDINGS, folder / name) for name in catalog.load_embedding() if (folder / name).is_dir())


def remove(name: str) -> Kept:
    """Remove what has that name. Raises ModelError."""
    kept = all_kept()
    found = next((one for one in kept if one.name == name), None)
    if found is None:
        there = ", ".join(one.name for one in kept) or "nothing"
        raise ModelError(f"{name}: is not in {models_folder()}; there is {there}")
    try:
        if found.path.is_dir():
            shutil.rmtree(found.path)
        else:
            found.path.unlink()
    except OSError as error:
        raise ModelError(f"{found.path}: cannot be removed: {(error.strerror or str(error)).lower()}") from None
    return found
