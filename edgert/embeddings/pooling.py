"""From the vectors of a text's tokens to that of the text: sentence-transformers' modules Pooling and Normalize."""

from collections.abc import Sequence

import numpy as np


def pooled(hidden: np.ndarray, mask: np.ndarray, modes: Sequence[str]) -> np.ndarray:
    """The vectors of texts: float32 of shape (texts, dimension * len(modes)).

    hidden: float32 of shape (texts, tokens, dimension). mask: of shape (texts, tokens), 1 for tokens and 0 for padding.
    """
    return np.concatenate([_pooled(hidden, mask, mode) for mode in modes], axis=1)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1, each in a row."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _pooled(hidden: np.ndarray, mask: np.ndarray, mode: str) -> np.ndarray:
    weights = mask.astype(np.float32)
    if mode == "cls":
        return hidden[np.arange(len(hidden)), mask.argmax(axis=1)]
    if mode == "lasttoken":
        return hidden[np.arange(len(hidden)), mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)]
    if mode == "max":
        return np.where(mask[..., None] > 0, hidden, -np.inf).max(axis=1).astype(np.float32)
    if mode == "weightedmean":
        weights = weights * np.arange(1, mask.shape[1] + 1, dtype=np.float32)
    total = np.einsum("btd,bt->bd", hidden, weights)
    count = np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    result: np.ndarray = total / (np.sqrt(count) if mode == "mean_sqrt_len" else count)
    return result
