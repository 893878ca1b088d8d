"""Which GGUF file of a model on the hub is taken where none is named."""

import re
from collections.abc import Mapping
from pathlib import Path

from edgert.errors import DownloadError

PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q4_K", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0", "F16", "BF16")
"""Of several GGUF files of a model: those with 4 bits first, which is what a bundle has by default."""


def best_gguf(spec: str, sizes: Mapping[str, int], free: int) -> str:
    """The name of the file of a model that fits best. spec: how the model is called. sizes: bytes by name, of all its
    files. free: bytes on the disk. Raises DownloadError where there is none."""
    there = [name for name in sizes if name.endswith(".gguf") and "mmproj" not in name
             and not re.search(r"-\d{5}-of-\d{5}\.gguf$", name)]
    if not there:
        raise DownloadError(f"{spec}: has neither safetensors nor a GGUF file in one part")
    room = [name for name in there if 2 * sizes[name] <= free]  # itself, and the bundle
    if not room:
        least = min(sizes[name] for name in there)
        raise DownloadError(f"{spec}: its smallest file has {least >> 20} MiB, and a bundle takes as much again; "
                            f"the disk has {free >> 20} MiB free")

    def place(name: str) -> tuple[int, int]:
        kinds = re.findall(r"I?Q\d\w*|B?F16", Path(name).stem.upper())
        places = [PREFERRED.index(kind) for kind in kinds if kind in PREFERRED]
        return min(places, default=len(PREFERRED)), sizes[name]

    return min(room, key=place)
