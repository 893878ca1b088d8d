"""Tokens as clients see them: their text, their bytes, their log-probabilities."""

import math
from collections.abc import Iterable
from typing import Any

from edgert import LanguageModel, Piece

_LOWEST = -9999.0
"""Stands for the logarithm of zero, which JSON has no number for; as OpenAI writes it."""


def text_of(model: LanguageModel, token: int) -> str:
    """A token's text; U+FFFD for bytes that are no whole characters."""
    return model.tokenizer.token_bytes(token).decode("utf-8", "replace")


def name_of(model: LanguageModel, token: int) -> str:
    """A text for each token that no other token has: bytes that are no whole characters are written as bytes, as
    OpenAI's completions do."""
    data = model.tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def number(logprob: float | None) -> float:
    """A log-probability that JSON has a number for."""
    return _LOWEST if logprob is None or not math.isfinite(logprob) else float(logprob)


def chat_logprobs(model: LanguageModel, pieces: Iterable[Piece]) -> dict[str, Any]:
    """The tokens of pieces with their log-probabilities, as /v1/chat/completions gives them."""
    return {"content": [{**_entry(model, piece.token_id, piece.logprob),
                         "top_logprobs": [_entry(model, token, logprob) for token, logprob in piece.top_logprobs]}
                        for piece in pieces if piece.token_id is not None],
            "refusal": None}


def _entry(model: LanguageModel, token: int, logprob: float | None) -> dict[str, Any]:
    return {"token": text_of(model, token), "logprob": number(logprob),
            "bytes": list(model.tokenizer.token_bytes(token))}


class CompletionLogprobs:
    """The tokens of a text with their log-probabilities, as /v1/completions gives them."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._decoder = model.tokenizer.stream_decoder()
        self._offset = 0
        self.values: dict[str, list[Any]] = {}
        self.clear()

    def clear(self) -> None:
        """Begin a new list; offsets go on."""
        self.values = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def add(self, token: int, logprob: float | None, top: Iterable[tuple[int, float]]) -> None:
        """Add a token. logprob: None where there is none, for the first of all. top: the most likely ones, which the
        token itself is added to."""
        first = logprob is None
        own = {} if first else {name_of(self._model, token): number(logprob)}
        values = (name_of(self._model, token), None if first else number(logprob),
                  None if first else {name_of(self._model, one): number(value) for one, value in top} | own,
                  self._offset)
        for entries, value in zip(self.values.values(), values, strict=True):
            entries.append(value)
        self._offset += len(self._decoder.push(token))
