"""/v1/chat/completions."""

from collections.abc import Sequence
from typing import Any

from edgert import Generation, Model, Piece

from .answers import Answering, Used, usage
from .requests import ChatRequest
from .service import Made
from .streams import Chunks
from .tokens import chat_logprobs


class Chat(Answering[ChatRequest], Chunks):
    """A conversation, and its answers."""

    def __init__(self, request: ChatRequest, model: Model, name: str, defaults: dict[str, Any]) -> None:
        """Raises EdgertError for what the model refuses, and ApiError."""
        super().__init__(request, model, name, "chatcmpl", "chat.completion")
        prompt = model.render(request.turns())
        self.works: Sequence[Generation] = [
            model.generate(prompt, max_tokens=request.limit, logprobs=request.top, **request.settings(defaults, number))
            for number in range(request.count)]
        self._begun = -1

    def whole(self, made: Sequence[Made]) -> dict[str, Any]:
        """The answers, all at once."""
        return {**self.base(), "choices": [self._choice(index, [m.piece for m in made if m.work == index])
                                           for index in range(len(self.works))],
                "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        return usage([Used(len(work.prompt_ids), work.statistics.prompt_tokens - work.statistics.prompt_computed,
                           len(work.token_ids)) for work in self.works], len(self.works))

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        return {"index": index, "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": self._logprobs(pieces), "finish_reason": pieces[-1].finish_reason}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        return chat_logprobs(self.model, pieces) if self.request.logprobs else None

    def of(self, made: Made) -> list[dict[str, Any]]:
        index, piece = made
        chunks = []
        if index > self._begun:
            self._begun = index
            chunks.append(self._chunk(index, {"role": "assistant", "content": "", "refusal": None}))
        has_logprobs = bool(self.request.logprobs) and piece.token_id is not None
        if piece.text or has_logprobs:
            logprobs = self._logprobs([piece]) if has_logprobs else None
            chunks.append(self._chunk(index, {"content": piece.text}, logprobs))
        if piece.finish_reason is not None:
            chunks.append(self._chunk(index, {}, reason=piece.finish_reason))
        return chunks

    def last(self) -> list[dict[str, Any]]:
        if not self.request.with_usage:
            return []
        return [{**self.base("chat.completion.chunk"), "choices": [], "usage": self._usage()}]

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None,
               reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        none_yet = {"usage": None} if self.request.with_usage else {}
        return {**self.base("chat.completion.chunk"), "choices": [choice], **none_yet}
