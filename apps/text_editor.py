"""The editor of the user's choice, for a text."""

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgert import EdgertError

_USUAL = ("editor", "nano", "vim", "vi", "emacs")


def edit_text(text: str) -> str:
    """Have the user change a text in $VISUAL, $EDITOR or a usual editor; returns it, without line ends behind it.

    If the editor says that it failed, the text is as before. Raises EdgertError where there is no editor, or it leaves
    something that is not text.
    """
    command = _editor()
    try:
        with tempfile.TemporaryDirectory(prefix="edgert-") as folder:  # which only its owner may enter
            file = Path(folder) / "question.md"
            file.write_text(text, encoding="utf-8", errors="surrogateescape")
            if subprocess.run([*command, file], check=False).returncode != 0:
                return text
            return file.read_text(encoding="utf-8").rstrip("\n")
    except UnicodeDecodeError:
        raise EdgertError(f"{command[0]} left a text that is not UTF-8; the question is as before") from None
    except OSError as error:
        raise EdgertError(f"{error.filename or command[0]}: {(error.strerror or str(error)).lower()}; the question is "
                          "as before") from None


def _editor() -> list[str]:
    """The command of the editor. Raises EdgertError."""
    for variable in ("VISUAL", "EDITOR"):
        if value := os.environ.get(variable, "").strip():
            try:
                command = shlex.split(value)
            except ValueError as error:
                raise EdgertError(f"{variable} is {value!r}, which is no command: {error}") from None
            if shutil.which(command[0]) is None:
                raise EdgertError(f"{variable} is {value}, and there is no such program; set it to an editor that "
                                  "there is")
            return command
    for name in _USUAL:
        if shutil.which(name):
            return [name]
    raise EdgertError("there is no editor; set EDITOR to the name of one")
