"""What clients may ask for: the bodies of requests as structs, checked as far as that goes without the model.

Fields that OpenAI's interface has and this server does not support are `Raw`: with a value that asks for something they
are refused by name; other unknown fields are ignored.
"""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct

from .errors import ApiError
from .messages import Message, turns_of
from .response_format import ResponseFormat, Schema
from .unsupported import Unsupported, refuse

Count = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Token = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Texts = str | Annotated[list[str], Meta(max_length=16)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Biases = Annotated[dict[Token, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)]
"""By token; JSON writes the tokens as texts."""
Answers = Annotated[int, Meta(ge=1, le=16)]
_MOST_CHOICES = 128
_MOST_LOGPROBS = 20


class StreamOptions(Struct):
    include_usage: bool | None = False


class Sampled(Struct, kw_only=True):
    """What all requests for answers have in common. None stands for the server's default."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Count | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: Texts | None = None
    n: Answers | None = None
    logit_bias: Biases | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None

    def check(self) -> None:
        """Raises ApiError for what cannot be had."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options goes with stream", param="stream_options")

    @property
    def count(self) -> int:
        return self.n or 1

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what was used."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def settings(self, defaults: dict[str, Any], number: int) -> dict[str, Any]:
        """The settings of `Model.generate`, for the answer with this number."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
                 "frequency_penalty", "logit_bias", "seed")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        settings = {**defaults, **given}
        if settings.get("seed") is not None:
            settings["seed"] = (settings["seed"] + number) % (1 << 64)
        return {**settings, "stop": [self.stop] if isinstance(self.stop, str) else self.stop or []}


class ChatRequest(Sampled, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=_MOST_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    functions: Unsupported = UNSET
    function_call: Unsupported = UNSET
    audio: Unsupported = UNSET
    modalities: list[str] | None = None
    prediction: Unsupported = UNSET
    web_search_options: Unsupported = UNSET

    def check(self) -> None:
        super().check()
        refuse(self, ("functions", "audio", "prediction", "web_search_options"))
        refuse(self, ("function_call",), besides=(b'"auto"',))
        if self.modalities not in (None, [], ["text"]):
            raise ApiError(400, "modalities: only text is supported", param="modalities", code="unsupported")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs goes with logprobs", param="top_logprobs")

    @property
    def limit(self) -> int | None:
        """Tokens of an answer, at most."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top(self) -> int | None:
        """Of how many most likely tokens log-probabilities are asked for; None if of none, nor of the token itself."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def turns(self) -> list[dict[str, Any]]:
        """The messages as the model's chat template takes them. Raises ApiError."""
        return turns_of(self.messages)

    def form(self) -> dict[str, Any]:
        """What `Model.chat` needs to know of the form of the answer: a schema, functions that it may call, and what is
        thought before it. Raises ApiError."""
        schema: Schema | None = self.response_format.schema if self.response_format is not None else None
        form: dict[str, Any] = {} if schema is None else {"schema": schema}
        if self.tools:
            form |= {"tools": self.tools, "parallel_tool_calls": self.parallel_tool_calls is not False}
        if self.tool_choice is not None:
            form["tool_choice"] = self.tool_choice
        values = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort == "none":
            form["thinking"] = False
        elif self.reasoning_effort is not None:
            values["reasoning_effort"] = self.reasoning_effort
        return {**form, "template_values": values} if values else form


class BudgetRequest(Struct):
    """The body of /edgert/budget. memory: bytes, or a text like "600M"."""

    memory: Annotated[int, Meta(gt=0, le=(1 << 62))] | Annotated[str, Meta(max_length=40)]


class CompletionRequest(Sampled, kw_only=True):
    """The body of /v1/completions. prompt: a text, the token ids of one, or a list of either."""

    prompt: str | list[str | Token | list[Token]]
    echo: bool | None = False
    logprobs: Annotated[int, Meta(ge=0, le=_MOST_LOGPROBS)] | None = None
    best_of: int | None = None
    suffix: Unsupported = UNSET

    def check(self) -> None:
        super().check()
        refuse(self, ("suffix",))
        if self.best_of is not None and self.best_of != self.count:
            raise ApiError(400, "best_of: only as many as n are supported", param="best_of", code="unsupported")
        prompts = self.prompts()
        if not prompts:
            raise ApiError(400, "prompt is an empty list; give at least one", param="prompt")
        if len(prompts) * self.count > _MOST_CHOICES:
            raise ApiError(400, f"prompt: {len(prompts) * self.count} answers are asked for, at most {_MOST_CHOICES} "
                           "are given at once", param="prompt")

    def prompts(self) -> list[str | list[int]]:
        """The prompts. Raises ApiError where texts and ids are mixed."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        kinds = {type(entry) for entry in self.prompt}
        if kinds == {int}:
            return [self.prompt]  # type: ignore[list-item]
        if len(kinds) > 1:
            raise ApiError(400, "prompt: give a text, token ids, or a list of either", param="prompt")
        return self.prompt  # type: ignore[return-value]
