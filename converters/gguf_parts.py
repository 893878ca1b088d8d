"""GGUF models in several files, as llama.cpp's llama-gguf-split makes them: NAME-00001-of-00003.gguf and so on."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, TypeVar

from edgert.errors import SourceError

_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MOST = 1024
AnyPath = TypeVar("AnyPath", bound=PurePath)


def parts_of(path: AnyPath) -> list[AnyPath]:
    """All files of the model that a file is of, by its name, in order; itself for a model in one."""
    match = _NAME.fullmatch(path.name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]) <= _MOST:
        return [path]
    return [path.with_name(f"{match['stem']}-{number + 1:05}-of-{match['count']}.gguf")
            for number in range(int(match["count"]))]


def existing_parts(path: Path) -> list[Path]:
    """`parts_of`. Raises SourceError where one is not there."""
    paths = parts_of(path)
    for number, part in enumerate(paths):
        if not part.is_file():
            raise SourceError(f"{part}: there is no such file, part {number + 1} of {len(paths)} of the model")
    return paths


def require_part(path: Path, metadata: Mapping[str, Any], number: int, count: int) -> None:
    """Raises SourceError where a file says of itself that it is not part `number` (from 0 on) of `count`."""
    says = metadata.get("split.no", 0), metadata.get("split.count", 0)
    if says[1] > 1 and count == 1:
        raise SourceError(f"{path}: is one of {says[1]} parts of a model, which cannot be found: give them the names "
                          f"that they had, NAME-00001-of-{says[1]:05}.gguf and so on")
    if count > 1 and says != (number, count):
        raise SourceError(f"{path}: is not part {number + 1} of {count}, as its name says: its header says "
                          f"{says[0] + 1} of {says[1]}; fetch it again")
