"""/v1/completions: texts, or token ids, that are gone on with; and how likely the model finds a given text."""

from collections.abc import Iterator, Sequence
from typing import Any

from edgert import ContextLengthError, LanguageModel, ModelError, Piece, Scores

from .answers import Answering, Used, usage
from .requests import CompletionRequest
from .streams import Chunks
from .tickets import Made, Work
from .tokens import CompletionLogprobs

_DEFAULT_TOKENS = 16
"""Where the request does not say how many; so OpenAI has it."""


class Completions(Answering[CompletionRequest], Chunks):
    """Prompts, and what follows them: for each as many choices as are asked for."""

    def __init__(self, request: CompletionRequest, model: LanguageModel, name: str, defaults: dict[str, Any]) -> None:
        """Raises EdgertError for what the model refuses, and ApiError."""
        super().__init__(request, model, name, "cmpl", "text_completion")
        limit = _DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
        prompts = request.prompts()
        self._choices = [
            _Choice(index, model, prompt, request, limit, request.settings(defaults, number))
            for index, (prompt, number) in enumerate((p, n) for p in prompts for n in range(request.count))]
        self._of = [choice for choice in self._choices for _ in choice.works]
        """Whose the works are."""
        self.works: Sequence[Work] = [work for choice in self._choices for work in choice.works]

    def whole(self, made: Sequence[Made]) -> dict[str, Any]:
        """The choices, all at once."""
        for work, piece in made:
            self._of[work].take(piece)
        return {**self.base(), "choices": [choice.values() for choice in self._choices], "usage": self._usage()}

    def of(self, made: Made) -> list[dict[str, Any]]:
        choice = self._of[made.work]
        choice.take(made.piece)
        if not choice.news:
            return []
        none_yet = {"usage": None} if self.request.with_usage else {}
        return [{**self.base(), "choices": [choice.values()], **none_yet}]

    def last(self) -> list[dict[str, Any]]:
        return [{**self.base(), "choices": [], "usage": self._usage()}] if self.request.with_usage else []

    def _usage(self) -> dict[str, Any]:
        return usage([choice.used for choice in self._choices], self.request.count)


class _Choice:
    """One answer to one prompt, and what of it has not been sent."""

    def __init__(self, index: int, model: LanguageModel, prompt: str | list[int], request: CompletionRequest,
                 limit: int, settings: dict[str, Any]) -> None:
        """Raises EdgertError."""
        self._index, self._model, self._limit = index, model, limit
        self._top = request.logprobs
        scored = bool(request.echo) and self._top is not None
        # Of one token after a scored prompt the logprob is wanted, also where it ends the text.
        self._generation = model.generate(_checked(model, prompt), max_tokens=limit, logprobs=self._top,
                                          ignore_eos=scored and limit == 1, **settings)
        self._ids = self._generation.prompt_ids
        self._text = ""
        if request.echo:
            self._text = prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)
        self._logprobs = CompletionLogprobs(model)
        self._reason: str | None = None
        self._answered, self._ended = 0, False
        self.works = self._works(scored=scored, greedy=settings["temperature"] == 0 and not _changed(settings))

    def _works(self, *, scored: bool, greedy: bool) -> list[Work]:
        """Scoring a prompt also tells the likeliest token after it: where no more is wanted that is all."""
        if not scored:
            return [self._generation]
        scoring = Scoring(self._model, self._ids, self._top or 0)
        return [scoring] if self._limit == 0 or (self._limit == 1 and greedy) else [scoring, self._generation]

    def take(self, piece: Piece | Scores) -> None:
        """Add what was computed."""
        if isinstance(piece, Scores):
            self._take_scores(piece)
            return
        self._text += piece.text
        self._reason = "stop" if piece.finish_reason and self._ended else piece.finish_reason
        if piece.token_id is not None:
            self._answered += 1
            self._ended = piece.token_id in self._model.tokenizer.eos_token_ids
            if self._top is not None:
                self._logprobs.add(piece.token_id, piece.logprob, piece.top_logprobs)

    def _take_scores(self, scores: Scores) -> None:
        for number, token in enumerate(self._ids):
            self._logprobs.add(token, float(scores.logprobs[number]) if number else None, scores.top[number])
        if len(self.works) == 1:
            self._reason = "length"
            if self._limit:
                self._take_following(scores.following)

    def _take_following(self, following: Sequence[tuple[int, float]]) -> None:
        """The likeliest token after the prompt is the answer; also where it ends the text, which says nothing."""
        token, logprob = following[0]
        tokenizer = self._model.tokenizer
        self._logprobs.add(token, logprob, following[:self._top])
        self._answered = 1
        self._text += tokenizer.decode([token], skip_special=True)
        if token in tokenizer.eos_token_ids:
            self._reason = "stop"

    @property
    def news(self) -> bool:
        """Whether there is something to send."""
        return bool(self._text or self._reason or self._logprobs.values["tokens"])

    def values(self) -> dict[str, Any]:
        """What came since the last time."""
        logprobs = self._logprobs.values if self._top is not None else None
        values = {"index": self._index, "text": self._text, "logprobs": logprobs, "finish_reason": self._reason}
        self._text = ""
        self._logprobs.clear()
        return values

    @property
    def used(self) -> Used:
        generated = self._generation.statistics
        return Used(len(self._ids), generated.prompt_tokens - generated.prompt_computed, self._answered)


class Scoring:
    """A work: how likely the tokens of a text are. Raises EdgertError for a text that is too long."""

    def __init__(self, model: LanguageModel, ids: Sequence[int], top: int) -> None:
        if len(ids) > model.context:
            raise ContextLengthError(f"the prompt has {len(ids)} tokens, the context room for {model.context}; "
                                     "shorten it or raise the context")
        self._model, self._ids, self._top = model, ids, top
        self._closed = False

    def __iter__(self) -> Iterator[Scores]:
        yield self._model.score(self._ids, top=self._top, progress=self._check)

    def _check(self, _done: int, _count: int) -> None:
        if self._closed:
            raise ModelError("nobody wants these scores any more")

    def close(self) -> None:
        """End it after the next pass over the weights."""
        self._closed = True


def _changed(settings: dict[str, Any]) -> bool:
    """Whether these settings make another token the likeliest."""
    return settings.get("repetition_penalty", 1) != 1 or any(
        settings.get(name) for name in ("presence_penalty", "frequency_penalty", "logit_bias"))


def _checked(model: LanguageModel, prompt: str | list[int]) -> str | list[int]:
    """A prompt all of whose ids are tokens. Raises ModelError."""
    size = model.vocab_size
    if not isinstance(prompt, str) and prompt and max(prompt) >= size:
        raise ModelError(f"token {max(prompt)} is not in the vocabulary of {size}")
    return prompt
