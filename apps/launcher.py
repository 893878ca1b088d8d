"""A launcher in the desktop's menu: a .desktop file and an icon, as freedesktop.org has them."""

import os
import shutil
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from edgert import EdgertError

NAME = "edgert"


def install(arguments: Sequence[str]) -> list[Path]:
    """Write both files into the user's data folder. arguments: of `edgert app`. Returns their paths. Raises
    EdgertError."""
    if sys.platform != "linux":
        raise EdgertError("launchers are installed on Linux only; elsewhere call edgert app")
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    entry = home / "applications" / f"{NAME}.desktop"
    icon = home / "icons" / "hicolor" / "scalable" / "apps" / f"{NAME}.svg"
    command = " ".join(quoted(part) for part in [*_program(), "app", *arguments])
    files = {icon: resources.files("edgert.apps").joinpath("page", "icon.svg").read_text(encoding="utf-8"),
             entry: f"[Desktop Entry]\nType=Application\nName={NAME}\n"
                    "Comment=Chat with a language model on this machine\n"
                    f"Exec={command}\nIcon={NAME}\nTerminal=false\nCategories=Utility;\nStartupWMClass={NAME}\n"}
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise EdgertError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from None
    return list(files)


def _program() -> list[str]:
    """How this edgert is called, from anywhere."""
    beside = Path(sys.executable).with_name(NAME)
    found = str(beside) if beside.is_file() else shutil.which(NAME)
    return [found] if found else [sys.executable, "-P", "-m", NAME]


def quoted(argument: str) -> str:
    """An argument as the Exec key wants it (Desktop Entry Specification 1.5, "The Exec key"): quoted, and because it
    stands in a string value, each backslash once more. Raises EdgertError for what cannot stand there."""
    if any(ord(sign) < 32 for sign in argument):
        raise EdgertError(f"{argument!r} cannot stand in a launcher: it has control characters")
    inner = "".join(f"\\{sign}" if sign in '"`$\\' else sign for sign in argument)
    return '"' + inner.replace("\\", "\\\\").replace("%", "%%") + '"'
