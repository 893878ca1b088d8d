"""Where a bundle is written, so that nothing is lost that is there: a model, a device, what a link points to."""

import stat
from collections.abc import Iterable
from pathlib import Path

from edgert.errors import SourceError


def destination(out: Path) -> Path:
    """The file that `out` names, links followed. Raises SourceError where no bundle can be put."""
    try:
        if out.is_symlink() and not out.exists():
            raise SourceError(f"{out}: is a link to {out.readlink()}, which is not there; remove the link, or name the "
                              "bundle itself")
        if not out.parent.is_dir():
            raise SourceError(f"{out.parent}: is not a folder; make it first")
        if out.is_dir():
            raise SourceError(f"{out}: is a folder; name the bundle to write, such as {out / 'model.edge'}")
        if out.exists() and not stat.S_ISREG(out.stat().st_mode):
            raise SourceError(f"{out}: is a device, a pipe or a socket; name a file to write, such as model.edge")
        return out.resolve()
    except OSError as error:
        raise _refused(out, error) from None


def require_apart(out: Path, files: Iterable[Path]) -> None:
    """Raises SourceError where `out` is one of the files, under whatever name."""
    for file in files:
        try:
            same = out.exists() and out.samefile(file)
        except OSError as error:
            raise _refused(out, error) from None
        if same:
            raise SourceError(f"{out}: is the model to convert, or a file of it; give the bundle another name")


def _refused(out: Path, error: OSError) -> SourceError:
    return SourceError(f"{out}: cannot be written: {(error.strerror or str(error)).lower()}")
