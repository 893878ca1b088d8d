"""GGUF files in a bundle's place: converted once and kept where edgert knows the family, else for llama.cpp to run."""

import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import xxhash

from edgert.bundle import Bundle
from edgert.bundle.header import VERSION
from edgert.download import models_folder
from edgert.errors import ModelError, SourceError, UnsupportedError
from edgert.locking import making
from edgert.terminal import show, show_passing

_under_way: list[Callable[[], None]] = []
"""What ends the conversions of this process."""


class Foreign(NamedTuple):
    """A GGUF file of which no bundle can be made. why: a sentence that goes on."""

    path: Path
    why: str


def resolve(path: str | Path) -> Path | Foreign:
    """The bundle to open for a path: itself, or what its GGUF file was converted to, now if need be. Raises EdgertError
    for a GGUF file that is damaged."""
    path = Path(path)
    return _converted(path) if _is_gguf(path) else path


def bundle_of(path: str | Path) -> Path:
    """The same for what can be done with bundles only. Raises EdgertError."""
    found = resolve(path)
    if isinstance(found, Foreign):
        raise ModelError(f"{found.why}; it runs through llama.cpp only, with edgert chat, run, serve, web and app")
    return found


def can_leave_out(path: str | Path) -> bool:
    """Whether the bundle for a path is of a mixture, or has predictors: of a model that may leave something out. Raises
    EdgertError where it cannot be opened."""
    with Bundle(bundle_of(path)) as opened:
        return bool(opened.header.config.experts or opened.header.losses)


def end_conversions() -> None:
    """End what is being converted for other threads: those get a SourceError."""
    for end in _under_way[:]:
        end()


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:  # whoever opens it will say so
        return False


def _converted(path: Path) -> Path | Foreign:
    """The bundle of a GGUF file, in the models' folder; one that was made of an earlier file at its path is removed."""
    # The converters stand above the commands, and are not imported unless something has to be converted.
    bundle, others = _place(path)
    if bundle.is_file():
        return bundle
    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
        with making(bundle, lambda: show(f"waiting for another process that converts {path.name}", err=True)):
            if not bundle.is_file():
                convert_apart = importlib.import_module("edgert.converters.apart").convert_apart
                try:
                    convert_apart(path, bundle, _Progress(path.name), _under_way.append)
                finally:
                    _under_way.clear()
                for other in bundle.parent.glob(others):
                    if other != bundle:
                        other.unlink(missing_ok=True)
    except UnsupportedError as error:
        return Foreign(path, str(error).partition(";")[0])
    except OSError as error:
        raise SourceError(f"{path}: the bundle that is made of it cannot be kept in {bundle.parent}: "
                          f"{(error.strerror or str(error)).lower()}; set EDGERT_MODELS to another folder") from None
    finally:
        show_passing()
    return bundle


def _place(path: Path) -> tuple[Path, str]:
    """Where the bundle of a file as it is now belongs, and a pattern for those of the same path."""
    path = path.absolute()
    with suppress(OSError):
        path = path.resolve()
    stat = path.stat()
    state = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino} {VERSION}"
    stem = f"{path.stem}-{xxhash.xxh3_64_hexdigest(str(path).encode('utf-8', 'surrogateescape'))[:8]}"
    return (models_folder() / "converted" / f"{stem}-{xxhash.xxh3_64_hexdigest(state.encode())[:8]}.edge",
            f"{stem.translate({ord(c): '?' for c in '*?['})}-????????.edge")


class _Progress:
    """Tells on standard error how far a conversion is: on a terminal in one line that is rewritten."""

    def __init__(self, name: str) -> None:
        self._name, self._told = name, False

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            show_passing(f"converting {self._name}, this once: {100 * done // max(total, 1)} %")
        elif not self._told:
            show(f"converting {self._name}, this once", err=True)
        self._told = True
