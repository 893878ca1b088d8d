"""What Ollama's clients may ask for: the bodies of requests as structs. Unknown fields are ignored, as Ollama does."""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct

from ..errors import ApiError
from ..unsupported import Unsupported, refuse
from .durations import seconds_of
from .messages import Message, turns_of

Whole = int | Annotated[float, Meta(ge=-(1 << 53), le=1 << 53)]
"""A whole number; Ollama takes 40.0 too."""
Stops = str | Annotated[list[str], Meta(max_length=16)]
_MOST_LOGPROBS = 20
_NAMES = {"temperature": "temperature", "top_p": "top_p", "min_p": "min_p", "repeat_penalty": "repetition_penalty",
          "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty"}
"""Options that are passed on as they are, and what `Model.generate` calls them."""


class Options(Struct):
    """Those that change an answer here. Others are ignored, as Ollama ignores those that it does not know: `num_ctx`,
    say, and all that says how a model is loaded."""

    temperature: float | None = None
    top_k: Whole | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Whole | None = None
    num_predict: Whole | None = None
    stop: Stops | None = None

    def settings(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """The settings of `Model.generate`."""
        settings = {**defaults, **{name: value for option, name in _NAMES.items()
                                   if (value := getattr(self, option)) is not None}}
        if self.top_k is not None:
            settings["top_k"] = max(int(self.top_k), 0)
        if self.seed is not None:
            settings["seed"] = int(self.seed) if self.seed >= 0 else None
        if self.num_predict is not None:  # -1 is for ever, -2 until the context is full; so is 0
            settings["max_tokens"] = int(self.num_predict) if self.num_predict > 0 else None
        settings["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return settings


class Asking(Struct, kw_only=True):
    """What requests for answers have in common."""

    model: Annotated[str, Meta(max_length=4096)]
    stream: bool | None = True
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    keep_alive: float | str | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=_MOST_LOGPROBS)] | None = None

    def check(self) -> None:
        """Raises ApiError for what cannot be had."""
        if isinstance(self.format, str) and self.format not in ("", "json"):
            raise ApiError(400, f"format is {self.format[:40]!r}; it is json, or a JSON schema")

    @property
    def keeps(self) -> float | None:
        """For how many seconds the model is to be kept; None for as long as before. Raises ApiError."""
        return None if self.keep_alive is None else seconds_of(self.keep_alive)

    @property
    def empty(self) -> bool:
        """Whether nothing is to be answered: then the model is loaded, or unloaded."""
        raise NotImplementedError

    def thinking(self, *, able: bool) -> dict[str, Any]:
        """What `Model.chat` needs to know of thinking: a model that is able to thinks unless it is told not to. Raises
        ApiError for one that is not."""
        if self.think and not able:
            raise ApiError(400, f"{self.model!r} does not support thinking")
        if not able:
            return {}
        level = {"template_values": {"reasoning_effort": self.think}} if isinstance(self.think, str) else {}
        return {"thinking": self.think is None or bool(self.think), **level}

    def settings(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """The settings of `Model.generate`."""
        settings = (self.options or Options()).settings(defaults)
        if self.format:
            settings["schema"] = {"type": "object"} if self.format == "json" else self.format
        if self.logprobs:
            settings["logprobs"] = self.top_logprobs or 0
        return settings


class ChatRequest(Asking, kw_only=True):
    """The body of /api/chat."""

    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None

    @property
    def empty(self) -> bool:
        return not self.messages

    def turns(self) -> list[dict[str, Any]]:
        """The messages as the model's chat template takes them. Raises ApiError."""
        return turns_of(self.messages or [])


class GenerateRequest(Asking, kw_only=True):
    """The body of /api/generate. suffix: what follows the answer."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    template: Unsupported = UNSET
    context: Unsupported = UNSET
    images: Unsupported = UNSET

    def check(self) -> None:
        super().check()
        refuse(self, ("template", "context", "images"))
        if self.raw and self.system:
            raise ApiError(400, "raw mode does not support system; write it into the prompt")

    @property
    def empty(self) -> bool:
        return not self.prompt

    def turns(self) -> list[dict[str, Any]]:
        """The prompt as a conversation."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt or ""}]


class Named(Struct):
    """The body of a request that is about a model. name: what `model` was called before."""

    model: Annotated[str, Meta(max_length=4096)] | None = None
    name: Annotated[str, Meta(max_length=4096)] | None = None
    stream: bool | None = True

    @property
    def asked(self) -> str:
        """Raises ApiError."""
        if not (asked := self.model or self.name):
            raise ApiError(400, "model is required")
        return asked
