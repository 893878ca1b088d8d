"""The engine: one call that takes n >= 1 new tokens of a session and gives logits for any of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgert.bundle import Bundle, Header
from edgert.errors import ModelError
from edgert.kernels.formats import FORMATS
from edgert.kernels.native import Library
from edgert.kernels.team import Team
from edgert.models.families import FAMILIES

from .network import Buffers, NetworkBuilder
from .region import Region
from .session import Session
from .weights import Weights

LOGIT_ROWS = 8
"""Rows of logits computed at once."""


class Programs(NamedTuple):
    """What is run for new tokens, for their logits, and for both: records.py's arrays."""

    body: np.ndarray
    head: np.ndarray
    whole: np.ndarray


class Engine:
    """A loaded model that computes.

    chunk: new tokens computed at once; more are taken in turns. The results do not depend on it, nor on `threads`.
    """

    def __init__(self, bundle: Bundle, library: Library, *, threads: int, chunk: int, cache_type: str) -> None:
        header = bundle.header
        self.config, self.chunk = header.config, chunk
        self._embedding = "model.embed_tokens.weight"
        self._weights = Weights(bundle, threads)
        self._buffers = Buffers(self.config, header, chunk, LOGIT_ROWS, threads)
        embedding = header.tensors[self._embedding]
        self._staging = Region(chunk * FORMATS[embedding.format].tile_bytes(embedding.columns), "embeddings")
        self._programs = tuple(self._build(header, cache_type, one_token=one) for one in (False, True))
        self._team = Team(library, threads)
        self._team.set(selected_rows=self._buffers.selected_buffer.address)

    def _build(self, header: Header, cache_type: str, *, one_token: bool) -> Programs:
        network = NetworkBuilder(self.config, header, self._weights, self._buffers, cache_type, one_token=one_token)
        FAMILIES[self.config.architecture].wire(self.config, network)
        body, head = network.body.array, network.head.array
        return Programs(body, head, np.concatenate([body, head]))

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of memory by purpose."""
        return {"weights": self._weights.bytes, "working memory": self._buffers.bytes}

    def forward(self, session: Session, tokens: Sequence[int], wanted: Sequence[int] | None = None) -> np.ndarray:
        """Compute new tokens at the end of a session.

        wanted: indices of the tokens whose logits are wanted; by default the last. Returns float32 of shape
        (len(wanted), vocab_size). Raises ModelError when the context is full, a token is not in the vocabulary, or
        values are not finite; then the session is as it was.
        """
        ids = np.asarray(tokens, dtype=np.int64)
        indices = np.array([len(ids) - 1] if wanted is None else wanted, dtype=np.int64)
        self._check(session, ids, indices)
        logits = np.empty((len(indices), self.config.vocab_size), np.float32)
        start = session.length
        for first in range(0, len(ids), self.chunk):
            part = ids[first:first + self.chunk]
            self._weights.embedding_tiles(self._embedding, part, self._staging, self._buffers.rows[:len(part)])
            self._team.set(tokens=len(part), position=start + first, cache=session.cache_address,
                           cache_layer_bytes=session.layer_bytes, cache_head_bytes=session.head_bytes,
                           rope=session.rope_address)
            programs = self._programs[len(part) == 1]
            here = np.flatnonzero((indices >= first) & (indices < first + len(part)))
            if not len(here):
                self._run(programs.body)
            for at in range(0, len(here), LOGIT_ROWS):
                rows = here[at:at + LOGIT_ROWS]
                self._buffers.selected[:len(rows)] = indices[rows] - first
                self._team.set(selected=len(rows))
                self._run(programs.head if at else programs.whole)
                logits[rows] = self._buffers.logits[:len(rows)]
        session.length = start + len(ids)
        return logits

    def _run(self, program: np.ndarray) -> None:
        if not self._team.run(program):
            raise ModelError("the model computed values that are not finite; its weights or the cache type f16 "
                             "do not hold them, try --kv-type f32")

    def _check(self, session: Session, ids: np.ndarray, indices: np.ndarray) -> None:
        if ids.ndim != 1 or not len(ids):
            raise ModelError("no tokens to compute: give at least one")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ModelError(f"token {ids.min() if ids.min() < 0 else ids.max()} is not in the vocabulary of "
                             f"{self.config.vocab_size}")
        if session.length + len(ids) > session.context:
            raise ModelError(f"the context is full: {session.length} tokens in use and {len(ids)} new ones, room for "
                             f"{session.context}; start anew or raise --context")
        if len(indices) and (indices.min() < 0 or indices.max() >= len(ids)):
            wrong = indices.min() if indices.min() < 0 else indices.max()
            raise ModelError(f"logits of token {wrong} are wanted, {len(ids)} are new")

    def close(self) -> None:
        """End the threads and give the memory back."""
        self._team.close()
        self._buffers.close()
        self._staging.close()
        self._weights.close()
