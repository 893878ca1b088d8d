"""Which GGUF file of a model on the hub is taken where none is named."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from edgert.errors import DownloadError

from .gguf_parts import parts_of

PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q4_K", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0", "F16", "BF16")
"""Of several GGUF files of a model: those with 4 bits first, which is what a bundle has by default."""


def best_gguf(spec: str, sizes: Mapping[str, int], free: int) -> str:
    """The name of the file of a model that fits best. spec: how the model is called. sizes: bytes by name, of all its
    files; of one in parts the first is given. free: bytes on the disk. Raises DownloadError where there is none."""
    models: dict[str, int] = {}
    for name in sizes:
        parts = [str(part) for part in parts_of(PurePosixPath(name))]
        if name.endswith(".gguf") and "mmproj" not in name and name == parts[0] and sizes.keys() >= set(parts):
            models[name] = sum(sizes[part] for part in parts)
    if not models:
        raise DownloadError(f"{spec}: has neither safetensors nor a GGUF file")
    room = [name for name in models if 2 * models[name] <= free]  # itself, and the bundle
    if not room:
        least = min(models.values())
        raise DownloadError(f"{spec}: its smallest file has {least >> 20} MiB, and a bundle takes as much again; "
                            f"the disk has {free >> 20} MiB free")

    def place(name: str) -> tuple[int, int]:
        kinds = re.findall(r"I?Q\d\w*|B?F16", Path(name).stem.upper())
        places = [PREFERRED.index(kind) for kind in kinds if kind in PREFERRED]
        return min(places, default=len(PREFERRED)), models[name]

    return min(room, key=place)
