"""`Embedder`: vectors of texts, from Python."""

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import psutil

from edgert.errors import EmbeddingError
from edgert.process import default_threads

from .child import Child
from .preparing import prepare
from .recipe import read_recipe

_TEXTS, _CHARACTERS = 64, 8 << 10
"""Of what is asked for at once, at most; one text may be longer. It bounds memory, and how long a cancelled call takes.
"""
_LOOKED_AT = 64
"""Characters of a text, for each token that counts: what follows those is not tokenized."""


class Embedded(NamedTuple):
    """Some of the texts. indices: which. vectors: float32 of shape (len(indices), dimension). tokens: how many were
    computed. cut: how many texts have more tokens than count."""

    indices: list[int]
    vectors: np.ndarray
    tokens: int
    cut: int


class Embedder:
    """Computes embeddings with onnxruntime, in a process of its own: it starts when something is asked for, and ends
    when nothing was for a while, with `close`, and with this process, however that ends. A context manager. Any thread
    may use it; one at a time is answered.

    model: a folder as sentence-transformers writes it, with an ONNX model; or an ONNX file in one.
    threads: that compute. Default: one per physical core. idle_s: after so many seconds the process ends.
    beginning: called if the model has to be prepared, which takes some seconds, once (preparing.py).

    name: of the model. onnx: its file. dimension: of vectors. max_tokens: what follows them in a text is left out.
    memory: bytes that the process takes, at most. Raises EmbeddingError.
    """

    def __init__(self, model: str | os.PathLike[str], *, threads: int | None = None, idle_s: float = 60.0,
                 beginning: Callable[[], object] = lambda: None) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise EmbeddingError("embeddings need onnxruntime: pip install 'edgert[embeddings]'")
        self._threads, self._idle_s = default_threads() if threads is None else threads, idle_s
        if not 1 <= self._threads <= 256:
            raise EmbeddingError(f"threads is {threads}; it goes from 1 to 256")
        self._path = Path(model).absolute()  # for processes that start later
        self._recipe = read_recipe(self._path)
        prepared = prepare(self._path, self._recipe, self._threads, beginning)
        self._prepared = prepared.onnx.absolute()
        self.name, self.onnx, self.max_tokens = self._recipe.name, self._recipe.onnx, self._recipe.max_tokens
        self.dimension, self.memory = prepared.dimension, prepared.memory
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._closed = False

    def embed(self, texts: Sequence[str], *, prompt: str | None = None, dimensions: int | None = None) -> np.ndarray:
        """The vectors of texts: float32 of shape (len(texts), dimension), in the order of the texts.

        prompt: by its name in the model's folder, goes before each text. dimensions: only so many of each vector, which
        are normalized again; good for models that were made for it. Raises EmbeddingError.
        """
        found = np.empty((len(texts), dimensions or self.dimension), np.float32)
        for piece in self.pieces(texts, prompt=prompt, dimensions=dimensions):
            found[piece.indices] = piece.vectors
        return found

    def pieces(self, texts: Sequence[str], *, prompt: str | None = None,
               dimensions: int | None = None) -> Iterator[Embedded]:
        """The same a few texts at a time, the shortest first. Between two pieces others may have their turn."""
        if isinstance(texts, str):
            raise EmbeddingError("give a list of texts, not a single one")
        if dimensions is not None and not 1 <= dimensions <= self.dimension:
            raise EmbeddingError(f"dimensions is {dimensions}; vectors of {self.name} have {self.dimension}")
        before = self._recipe.before(prompt)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise EmbeddingError(f"text {number} is {type(text).__name__}, not str")
            try:
                (before + text).encode()
            except UnicodeEncodeError:
                raise EmbeddingError(f"text {number} has half of a surrogate pair, which is no character") from None
        longest = _LOOKED_AT * self.max_tokens
        for indices in _some(texts, longest):
            asked = [before + texts[index][:longest] for index in indices]
            if self._recipe.lower_case:
                asked = [text.lower() for text in asked]
            message, vectors = self._ask(asked)
            vectors = vectors.reshape(len(indices), self.dimension)
            if dimensions is not None:
                vectors = vectors[:, :dimensions]
                vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            yield Embedded(indices, vectors, sum(message["tokens"]), message["cut"])

    def _ask(self, texts: list[str]) -> tuple[dict[str, Any], np.ndarray]:
        with self._lock:
            for again in (True, False):
                if self._closed:
                    raise EmbeddingError(f"{self.name}: was closed")
                if self._child is None or not self._child.running:
                    self._child = Child(self._path, self.name, self._prepared, self._threads, self._idle_s)
                child = self._child
                if self._closed:  # while it started
                    child.end()
                try:
                    return child.ask({"texts": texts})
                except EmbeddingError:
                    if not (child.idle and again):  # else it had just ended
                        raise
        raise AssertionError

    @property
    def used(self) -> int:
        """Bytes that its process uses now; 0 where there is none."""
        child = self._child
        with suppress(psutil.Error):
            return int(psutil.Process(child.pid).memory_info().rss) if child is not None and child.running else 0
        return 0

    def close(self) -> None:
        """End the process; what is being computed fails. Nothing happens where it has ended."""
        self._closed = True
        if (child := self._child) is not None:
            child.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _some(texts: Sequence[str], longest: int) -> Iterator[list[int]]:
    """Indices of texts that are asked for at once: of similar lengths."""
    some: list[int] = []
    size = 0
    for index in sorted(range(len(texts)), key=lambda index: len(texts[index])):
        length = min(len(texts[index]), longest)
        if some and (len(some) == _TEXTS or size + length > _CHARACTERS):
            yield some
            some, size = [], 0
        some.append(index)
        size += length
    if some:
        yield some
