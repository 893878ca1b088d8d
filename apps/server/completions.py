"""/v1/completions: texts, or token ids, that are gone on with."""

from collections.abc import Sequence
from typing import Any

from edgert import Generation, Model, ModelError, Piece

from .answers import Answering, text_and_reason, usage
from .requests import CompletionRequest
from .service import Made
from .streams import Chunks
from .tokens import CompletionLogprobs

_DEFAULT_TOKENS = 16
"""Where the request does not say how many; so OpenAI has it."""


class Completions(Answering[CompletionRequest], Chunks):
    """Prompts, and what follows them: for each as many choices as are asked for."""

    def __init__(self, request: CompletionRequest, model: Model, name: str, defaults: dict[str, Any]) -> None:
        """Raises EdgertError for what the model refuses, and ApiError."""
        super().__init__(request, model, name, "cmpl", "text_completion")
        limit = _DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
        self._prompts = request.prompts()
        self.works: Sequence[Generation] = [
            model.generate(_checked(model, prompt), max_tokens=limit, logprobs=request.logprobs,
                           **request.settings(defaults, number))
            for prompt in self._prompts for number in range(request.count)]
        self._logprobs = [CompletionLogprobs(model) for _ in self.works]
        self._begun = -1

    def whole(self, made: Sequence[Made]) -> dict[str, Any]:
        """The choices, all at once."""
        choices = []
        for index in range(len(self.works)):
            pieces = [m.piece for m in made if m.work == index]
            text, reason = text_and_reason(pieces)
            for piece in pieces:
                self._add(index, piece)
            choices.append(self._choice(index, self._echo(index) + text, reason))
        return {**self.base(), "choices": choices, "usage": usage(self.works, len(self._prompts))}

    def _echo(self, index: int) -> str:
        """The text of the prompt, where it is to be repeated."""
        if not self.request.echo:
            return ""
        prompt = self._prompts[index // self.request.count]
        return prompt if isinstance(prompt, str) else self.model.tokenizer.decode(prompt)

    def _add(self, index: int, piece: Piece) -> None:
        if self.request.logprobs is not None and piece.token_id is not None:
            self._logprobs[index].add(piece.token_id, piece.logprob, piece.top_logprobs)

    def _choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self.request.logprobs is not None:
            logprobs = self._logprobs[index].values
            self._logprobs[index].clear()
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def of(self, made: Made) -> list[dict[str, Any]]:
        index, piece = made
        text = piece.text
        if index > self._begun:
            self._begun = index
            text = self._echo(index) + text
        self._add(index, piece)
        if not text and piece.finish_reason is None and self.request.logprobs is None:
            return []
        none_yet = {"usage": None} if self.request.with_usage else {}
        return [{**self.base(), "choices": [self._choice(index, text, piece.finish_reason)], **none_yet}]

    def last(self) -> list[dict[str, Any]]:
        if not self.request.with_usage:
            return []
        return [{**self.base(), "choices": [], "usage": usage(self.works, len(self._prompts))}]


def _checked(model: Model, prompt: str | list[int]) -> str | list[int]:
    """A prompt all of whose ids are tokens. Raises ModelError."""
    size = model.header.config.vocab_size
    if not isinstance(prompt, str) and prompt and max(prompt) >= size:
        raise ModelError(f"token {max(prompt)} is not in the vocabulary of {size}")
    return prompt
