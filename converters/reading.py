"""What the readers of foreign formats share: bounded text, and the checks that make a `Source` of what was found."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgert.errors import SourceError, UnsupportedError
from edgert.models.config import Config
from edgert.models.families import FAMILIES, Family
from edgert.models.tensors import Fused, TensorSpec

from .expert_tensors import Stacked
from .gptoss_tensors import Vectors
from .rows import Rows
from .source import SourceTensor

NameOf = Callable[[Fused | TensorSpec], str]
"""The name of a tensor in a file."""


def read_text(path: Path, limit: int) -> str:
    """A UTF-8 text file of at most `limit` bytes. Raises SourceError."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise SourceError(f"{path}: is larger than {limit >> 20} MiB, which no real one is")
        return content.decode("utf-8")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def require_finite(values: np.ndarray, path: Path, name: str) -> np.ndarray:
    """The values; raises SourceError where one is infinite or not a number."""
    if not np.isfinite(values).all():
        raise SourceError(f"{path}: tensor {name} has values that are infinite or not a number: the file is damaged")
    return values


def gguf_architecture(metadata: Mapping[str, Any]) -> object:
    """The name of the family of a GGUF file with this metadata: there a Mixtral is a Llama that has experts."""
    name = metadata.get("general.architecture")
    return "mixtral" if name == "llama" and metadata.get("llama.expert_count") else name


def known_family(path: Path, architecture: object, known: Mapping[str, Family] = FAMILIES) -> Family:
    """The family of that name. Raises UnsupportedError."""
    if not isinstance(architecture, str) or architecture not in known:
        raise UnsupportedError(f"{path}: architecture {architecture!r} is not supported; "
                               f"supported: {', '.join(known)}")
    return known[architecture]


def family_config(path: Path, architecture: object, known: Mapping[str, Family],
                  build: Callable[[type[Config]], Config]) -> Config:
    """`build` called with the `Config` class of the named one of the known families.

    Raises SourceError where the family is unknown, or `build` finds hyper-parameters missing or impossible.
    """
    config = known_family(path, architecture, known).Config
    try:
        return build(config)
    except KeyError as error:
        raise SourceError(f"{path}: the model configuration has no {error.args[0]!r}") from error
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise SourceError(f"{path}: the model configuration cannot be used: {error}") from error


def model_tensors(path: Path, config: Config, found: Mapping[str, SourceTensor], name_of: NameOf, *,
                  by_head: bool) -> dict[str, SourceTensor]:
    """The model's tensors by canonical name, out of those found, which have the names that `name_of` gives. by_head:
    whether the rows of fused ones are as in Hugging Face's files (`models.tensors.Fused`).

    An output head beside an embedding that is the head itself, a copy that some exports write, is left out. Raises
    SourceError unless all others are exactly those of `config.tensors()`, with those shapes.
    """
    if config.num_hidden_layers > len(found):  # before tensors(), which are as many as the number claims
        raise SourceError(f"{path}: claims {config.num_hidden_layers} layers but has {len(found)} tensors")
    found = _joined(path, config, _unfused(path, config, found, name_of, by_head=by_head), name_of)
    specs = list(config.tensors())
    if missing := [spec.name for spec in specs if name_of(spec) not in found]:
        raise SourceError(f"{path}: tensor {missing[0]} is missing{_and_more(missing)}")
    known = {name_of(spec) for spec in replace(config, tie_word_embeddings=False).tensors()}
    if unexpected := [name for name in found if name not in known]:
        raise SourceError(f"{path}: tensor {unexpected[0]} is not one that architecture {config.architecture} "
                          f"has{_and_more(unexpected)}")
    tensors = {spec.name: found[name_of(spec)] for spec in specs}
    for spec in specs:
        if (shape := tensors[spec.name].shape) != spec.shape:
            raise SourceError(f"{path}: tensor {spec.name} has shape {list(shape)}, expected {list(spec.shape)}")
    return tensors


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _joined(path: Path, config: Config, found: Mapping[str, SourceTensor], name_of: NameOf) -> dict[str, SourceTensor]:
    """The tensors found, those that are parts of one of the model's as that one. Raises SourceError where not all have
    the size that they must have."""
    found = dict(found)
    for whole, names in config.joined():
        size, name = whole.shape[0] // len(names), name_of(whole)
        if name in found and found[name].shape == (len(names), size):
            found[name] = Vectors(found[name])
        elif name not in found and found.keys() >= set(names):
            parts = [found.pop(part) for part in names]
            for part, tensor in zip(names, parts, strict=True):
                if tensor.shape != (size,):
                    raise SourceError(f"{path}: tensor {part} has shape {list(tensor.shape)}, expected {[size]}")
            found[name] = Stacked(parts)
    return found


def _unfused(path: Path, config: Config, found: Mapping[str, SourceTensor], name_of: NameOf, *,
             by_head: bool) -> dict[str, SourceTensor]:
    """The tensors found, those that are several of the model's in parts. Raises SourceError where one has not as many
    rows as its parts."""
    found = dict(found)
    for fused in config.fused():
        whole = found.pop(name_of(fused), None)
        if whole is None:
            continue
        rows = sum(part.shape[0] for part in fused.parts)
        if whole.shape != (rows, *fused.parts[0].shape[1:]):
            raise SourceError(f"{path}: tensor {name_of(fused)} has shape {list(whole.shape)}, expected "
                              f"{[rows, *fused.parts[0].shape[1:]]}")
        runs = fused.by_head if by_head else 1
        first = 0
        for part in fused.parts:
            run = part.shape[0] // runs
            found[name_of(part)] = Rows(whole, part.shape, first, run, rows // runs)
            first += run
    return found
