"""What every reader of a foreign format gives: hyper-parameters, tensors by canonical name, tokenizer, provenance."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edgert.models.config import Config

from .source_file import SourceFile


@dataclass(frozen=True)
class Grid:
    """The grid that a source tensor already stands on: weight = scale * q - minimum, q in 0..top, groups of 32.

    Both arrays are float32 of shape (rows, columns / 32).
    """

    scale: np.ndarray
    minimum: np.ndarray
    top: int = 15


class SourceTensor(Protocol):
    """A tensor in a foreign file; nothing is read before `read` is called."""

    shape: tuple[int, ...]
    """(rows, columns) of a matrix, (n,) of a vector."""
    type_name: str
    """The source's name of the element type, such as Q4_K, F16 or BF16."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (elements, of a vector) as float32. Raises SourceError."""

    def grid(self, start: int, stop: int) -> Grid | None:
        """The grid of rows start to stop, where the source type has one (Q4_K, say); otherwise None."""


@dataclass(frozen=True)
class Source:
    """A model to convert."""

    config: Config
    tensors: Mapping[str, SourceTensor]
    """By canonical name; exactly those of `config.tensors()`, with those shapes."""
    tokenizer_json: str
    """A tokenizer in the `tokenizers` library's own JSON."""
    generation: Mapping[str, Any]
    """`bos_token_id` (int or None), `eos_token_ids` (list of int), `add_bos_token` (bool)."""
    chat_template: str | None
    """A Jinja template."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """`source` (file name or hub id), `sha256` of the file or `files`, `type`."""
    files: tuple[SourceFile, ...] = ()
    """All that it was read from."""
