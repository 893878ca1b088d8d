"""/api/chat and /api/generate: answers as Ollama writes them."""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from edgert import Generation, LanguageModel, Piece, ToolCall

from ..streams import made
from ..tickets import Made, Ticket
from ..tokens import chat_logprobs
from .durations import time_text
from .filling import prompt_between
from .requests import Asking, ChatRequest, GenerateRequest

_NANO = 1_000_000_000


@dataclass
class Times:
    """When a request came, and when its model was there for it, by `time.perf_counter`."""

    came: float = field(default_factory=time.perf_counter)
    loaded: float = 0.0


class Answer:
    """One request, and what comes of it."""

    def __init__(self, asked: Asking, model: LanguageModel, generation: Generation, times: Times) -> None:
        self.works: Sequence[Generation] = [generation]
        self._asked, self._model, self._generation, self._times = asked, model, generation, times
        self._sent = 0
        """How many calls have been sent."""

    async def lines(self, ticket: Ticket) -> AsyncIterator[dict[str, Any]]:
        """The objects of a stream. Raises ApiError."""
        reason = None
        async for one in made(ticket):
            piece: Piece = one.piece
            reason = piece.finish_reason
            text, calls = self._news(piece)
            if text or calls or piece.thinking or self._asked.logprobs:
                yield self._object(text, calls, [piece])
        yield self._object("", [], []) | self._end(reason)

    def whole(self, all_made: Sequence[Made]) -> dict[str, Any]:
        """The answer, all at once."""
        pieces: list[Piece] = [one.piece for one in all_made]
        text, calls = "", []
        for piece in pieces:
            more, called = self._news(piece)
            text += more
            calls += called
        return self._object(text, calls, pieces) | self._end(pieces[-1].finish_reason)

    def _news(self, piece: Piece) -> tuple[str, list[dict[str, Any]]]:
        """The text of a piece, and the calls that have become whole with it. A call that is none, as it has no object
        of arguments, is text."""
        known = self._generation.tool_calls
        until = len(known) if piece.finish_reason else max((call.index for call in piece.calls), default=self._sent)
        text, calls = piece.text, []
        for index in range(self._sent, until):
            if (call := _call(known[index], index)) is not None:
                calls.append(call)
            else:
                text += _text_of(known[index])
        self._sent = max(until, self._sent)
        return text, calls

    def _object(self, text: str, calls: list[dict[str, Any]], pieces: Sequence[Piece]) -> dict[str, Any]:
        logprobs = chat_logprobs(self._model, pieces)["content"] if self._asked.logprobs and pieces else []
        thinking = "".join(piece.thinking for piece in pieces)
        return {"model": self._asked.model, "created_at": time_text(), **self._said(text, calls, thinking),
                "done": False, **({"logprobs": logprobs} if logprobs else {})}

    def _said(self, text: str, calls: list[dict[str, Any]], thinking: str) -> dict[str, Any]:
        raise NotImplementedError

    def _end(self, reason: str | None) -> dict[str, Any]:
        """What the last object has besides. Durations are in nanoseconds."""
        statistics, times = self._generation.statistics, self._times
        return {"done": True, "done_reason": "length" if reason == "length" else "stop",
                "total_duration": round((time.perf_counter() - times.came) * _NANO),
                "load_duration": round((times.loaded - times.came) * _NANO),
                "prompt_eval_count": statistics.prompt_tokens,
                "prompt_eval_duration": round(statistics.first_token_s * _NANO),
                "eval_count": statistics.generated_tokens, "eval_duration": round(statistics.decode_s * _NANO)}


class ChatAnswer(Answer):
    """Raises EdgertError for what the model refuses, and ApiError."""

    def __init__(self, asked: ChatRequest, model: LanguageModel, defaults: dict[str, Any], times: Times) -> None:
        generation = model.chat(asked.turns(), tools=asked.tools or None, **asked.thinking(able=model.thinks),
                                **asked.settings(defaults))
        super().__init__(asked, model, generation, times)

    def _said(self, text: str, calls: list[dict[str, Any]], thinking: str) -> dict[str, Any]:
        return chat_said(text, calls, thinking)


class GenerateAnswer(Answer):
    """A prompt is a user's message, unless it is raw, something follows it, or the model has no template for chats.
    Raises EdgertError for what the model refuses, and ApiError."""

    def __init__(self, asked: GenerateRequest, model: LanguageModel, defaults: dict[str, Any], times: Times) -> None:
        settings = asked.settings(defaults)
        if asked.suffix:
            generation = model.generate(prompt_between(model, asked.prompt or "", asked.suffix), **settings)
        elif asked.raw or (model.chat_template is None and not asked.system):
            generation = model.generate(asked.prompt or "", **settings)
        else:
            generation = model.chat(asked.turns(), **asked.thinking(able=model.thinks), **settings)
        super().__init__(asked, model, generation, times)

    def _said(self, text: str, calls: list[dict[str, Any]], thinking: str) -> dict[str, Any]:
        return generate_said(text, thinking)


def chat_said(text: str, calls: list[dict[str, Any]], thinking: str = "") -> dict[str, Any]:
    """What an object of /api/chat has for an answer's text and calls, and what is thought before it."""
    return {"message": {"role": "assistant", "content": text, **({"thinking": thinking} if thinking else {}),
                        **({"tool_calls": calls} if calls else {})}}


def generate_said(text: str, thinking: str = "") -> dict[str, Any]:
    """What an object of /api/generate has for an answer's text, and what is thought before it."""
    return {"response": text, **({"thinking": thinking} if thinking else {})}


def _call(call: ToolCall, index: int) -> dict[str, Any] | None:
    """A call, whose arguments are an object for Ollama; None if what the model wrote is none."""
    try:
        arguments = msgspec.json.decode(call.arguments or "{}")
    except (msgspec.MsgspecError, RecursionError):
        return None
    if not isinstance(arguments, dict):
        return None
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}


def _text_of(call: ToolCall) -> str:
    """A call as the model wrote it, more or less."""
    return f'{{"name": {msgspec.json.encode(call.name).decode()}, "arguments": {call.arguments}'
