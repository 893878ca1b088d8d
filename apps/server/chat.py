"""/v1/chat/completions."""

from collections.abc import Sequence
from typing import Any

from edgert import CallDelta, Generation, LanguageModel, Piece

from .answers import Answering, Used, usage
from .requests import ChatRequest
from .streams import Chunks
from .tickets import Made
from .tokens import chat_logprobs


class Chat(Answering[ChatRequest], Chunks):
    """A conversation, and its answers."""

    def __init__(self, request: ChatRequest, model: LanguageModel, name: str, defaults: dict[str, Any]) -> None:
        """Raises EdgertError for what the model refuses, and ApiError."""
        super().__init__(request, model, name, "chatcmpl", "chat.completion")
        turns, form = request.turns(), request.form()
        self.works: Sequence[Generation] = [
            model.chat(turns, max_tokens=request.limit, logprobs=request.top, **form,
                       **request.settings(defaults, number)) for number in range(request.count)]
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
        text, calls = "".join(piece.text for piece in pieces), self.works[index].tool_calls
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if thinking := "".join(piece.thinking for piece in pieces):
            message["reasoning_content"] = thinking
        if calls:
            message["tool_calls"] = [{"id": call.id, "type": "function",
                                      "function": {"name": call.name, "arguments": call.arguments}} for call in calls]
        return {"index": index, "message": message, "logprobs": self._logprobs(pieces),
                "finish_reason": pieces[-1].finish_reason}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        return chat_logprobs(self.model, pieces) if self.request.logprobs else None

    def of(self, made: Made) -> list[dict[str, Any]]:
        index, piece = made
        chunks = []
        if index > self._begun:
            self._begun = index
            chunks.append(self._chunk(index, {"role": "assistant", "content": "", "refusal": None}))
        if piece.thinking:
            chunks.append(self._chunk(index, {"reasoning_content": piece.thinking}))
        has_logprobs = bool(self.request.logprobs) and piece.token_id is not None
        if piece.text or has_logprobs:
            logprobs = self._logprobs([piece]) if has_logprobs else None
            chunks.append(self._chunk(index, {"content": piece.text}, logprobs))
        chunks += [self._chunk(index, {"tool_calls": [_delta(call)]}) for call in piece.calls]
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


def _delta(call: CallDelta) -> dict[str, Any]:
    """What comes of a call: first its name, then more and more of its arguments."""
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index, "id": call.id, "type": "function",
            "function": {"name": call.name, "arguments": call.arguments}}
