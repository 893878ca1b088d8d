"""What every model that answers can do, whoever computes it: check what is asked, render conversations, generate."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from typing import Any, Protocol, Self

from .errors import ContextLengthError, ModelError, TemplateError
from .generation.generation import Answer, Computing, Generation
from .generation.grammar import Grammar, Grammars, Schema
from .generation.sampling import Sampling
from .generation.scoring import Scores
from .generation.thinking import MARKS as THOUGHT_MARKS
from .generation.thinking import SWITCHES, Marks, ThoughtReader, answer_marks_in, marks_in
from .generation.tool_calls import MARKS, CallReader
from .generation.tools import Choice, Tools, with_arguments_read
from .residency.device import Device
from .text.chat_template import ChatTemplate
from .text.tokenizer import AnyTokenizer, check_unicode

MOST_LOGPROBS = 1000
"""Most likely tokens whose log-probabilities may be asked for."""
_LONGEST_TOKEN = 128
"""In characters; the longest tokens of known vocabularies are runs of spaces."""


class MemoryUse(Protocol):
    """How a model uses memory: what programs show of it. All sizes are bytes."""

    @property
    def budget(self) -> int:
        """What it may use."""

    @property
    def parts(self) -> dict[str, int]:
        """By purpose."""

    @property
    def disk(self) -> Device | None:
        """What weights are read from while it answers; None where all of them stay in memory."""

    @property
    def pinned_share(self) -> float:
        """The fraction of the weights that stays in memory."""

    @property
    def summary(self) -> str:
        """It all in one line, for people."""


class LanguageModel(ABC):
    """A model that answers: a bundle's (`Model`), or one that runs through llama.cpp (`fallback.model.LlamaModel`).

    tokenizer: its own. plan: how it uses memory. threads: that compute. parallel: how many answers are given at once.
    keeps_sessions: whether conversations can be kept in files.
    """

    tokenizer: AnyTokenizer
    plan: MemoryUse
    threads: int
    parallel: int
    keeps_sessions: bool

    @property
    @abstractmethod
    def context(self) -> int:
        """How many tokens prompt and answers may have together."""

    @property
    @abstractmethod
    def longest_context(self) -> int:
        """The largest context that the model was made for."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """How many logits there are, which may be more than there are tokens."""

    @property
    @abstractmethod
    def kv_policy(self) -> str:
        """What happens when the context is full."""

    @property
    @abstractmethod
    def endless(self) -> bool:
        """Whether conversations may go on when the context is full."""

    @property
    def drafts(self) -> bool:
        """Whether it guesses tokens with what stays in memory of its weights."""
        return False

    @property
    def price(self) -> float:
        """Nats by which each token is less likely, as the model was loaded to lose something for speed."""
        return 0.0

    @property
    @abstractmethod
    def digest(self) -> str:
        """The same for all files that give the same answers, in hexadecimal digits."""

    @property
    @abstractmethod
    def chat_template(self) -> str | None:
        """The model's chat template, None if it has none."""

    @property
    @abstractmethod
    def read_again(self) -> int:
        """How many reads failed, or brought damaged data, and were repeated."""

    @property
    @abstractmethod
    def read_bytes(self) -> int:
        """How many bytes have been read from flash since the model was loaded."""

    @property
    def beside(self) -> int:
        """Bytes that are in use now in other processes, for this model."""
        return 0

    @abstractmethod
    def budgets(self) -> tuple[int, int]:
        """The smallest budget that works with these settings and the smallest with which nothing is read from flash, in
        bytes, as they are told to users."""

    @abstractmethod
    def score(self, tokens: Sequence[int], *, top: int = 0, start: int = 1, wait: bool = False,
              progress: Callable[[int, int], None] = lambda done, count: None) -> Scores:
        """How likely the model finds each token of a text, given those before it."""

    @abstractmethod
    def save_session(self, path: str | PathLike[str], talk: Mapping[str, Any] | None = None, *,
                     wait: bool = True) -> None:
        """Write what was computed last into a file. Raises SessionError."""

    @abstractmethod
    def wait_for_session(self) -> None:
        """Wait until what `save_session` writes is written. Raises SessionError if it cannot be."""

    @abstractmethod
    def open_session(self, path: str | PathLike[str]) -> dict[str, Any]:
        """Go on with a session that `save_session` has written. Returns its `talk`. Raises SessionError."""

    @abstractmethod
    def close(self) -> None:
        """End it, and free its memory. Waits for what another thread is computing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What answers are computed by.

    @abstractmethod
    def _check_open(self) -> None:
        """Raises ModelError for a model that was closed."""

    @abstractmethod
    def _computing(self, ids: Sequence[int], wait: bool) -> Computing:
        """The functions through which an answer uses this model; each checks that the answer still has its turn."""

    @abstractmethod
    def _loaded_grammars(self) -> Grammars:
        """What makes grammars. Raises ModelError where there is no room for that."""

    def generate(self, prompt: str | Sequence[int], *, max_tokens: int | None = None, temperature: float = 0.0,
                 top_k: int = 40, top_p: float = 0.95, min_p: float = 0.05, repetition_penalty: float = 1.0,
                 presence_penalty: float = 0.0, frequency_penalty: float = 0.0,
                 logit_bias: Mapping[int, float] | None = None, seed: int | None = None,
                 stop: str | Sequence[str] = (), logprobs: int | None = None, ignore_eos: bool = False,
                 schema: Schema | None = None, regex: str | None = None, grammar: str | None = None,
                 calls: CallReader | None = None, thoughts: ThoughtReader | None = None, max_loss: float = 0.0,
                 wait: bool = False) -> Generation:
        """Continue a text, or a list of token ids. Returns the answer, an iterator of `Piece`s.

        Nothing is computed until the first piece is asked for. Then this answer starts, and an older one that is not
        finished raises ModelError when its next piece is asked for. With `wait` this answer starts when the current
        one, and all that were waiting before, are finished, closed or garbage-collected. (A thread must not wait for
        an answer that it would have to finish itself.)

        max_tokens: None for as many as the context holds. temperature: 0 is greedy decoding; this and the other
        sampling settings are explained in `Sampling`. stop: texts that end the answer and are not part of it.
        logprobs: also give each token's log-probability, and those of this many most likely tokens. ignore_eos: do not
        stop at the model's end-of-text token.

        max_loss: 0.03 lets an answer be up to 3 % less likely a token than what the model would choose, for speed where
        guesses are drafted: those that are nearly as likely are taken (generation/lenience.py). What it cost is in the
        statistics. Such answers depend on the memory budget, and on how fast things happen to be. What a model that was
        loaded with a `max_loss` of its own loses already comes off it.

        The answer follows one of these, if given, and ends where nothing more is allowed; with finish_reason "length"
        it is only the beginning of one. schema: a JSON schema, {"type": "object"} for any JSON object, True for any
        value. regex: a regular expression (of Rust's kind) for the whole answer. grammar: one in llguidance's variant
        of Lark. (generation/grammar.py) calls: reads function calls out of the answer (generation/tool_calls.py);
        thoughts: reads what is thought out of it (generation/thinking.py); `chat` does both.

        Raises ModelError for settings that are out of range, and ContextLengthError for a prompt that does not fit into
        the context.
        """
        self._check_open()
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed=seed,
                            presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
                            logit_bias=dict(logit_bias or {}))
        if (token := max(sampling.logit_bias, default=0)) >= self.vocab_size:
            raise ModelError(f"logit_bias names token {token}, which is not in the vocabulary of "
                             f"{self.vocab_size}")
        if max_tokens is not None and max_tokens < 0:
            raise ModelError(f"max_tokens is {max_tokens}; it is 0 or more")
        if logprobs is not None and not 0 <= logprobs <= MOST_LOGPROBS:
            raise ModelError(f"logprobs is {logprobs}; it goes from 0 to {MOST_LOGPROBS}")
        stop = [stop] if isinstance(stop, str) else list(stop)
        for text in stop:
            check_unicode(text, "A stop string cannot be used")
        if isinstance(prompt, str):
            self._check_length(prompt)
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        if not ids:
            raise ModelError("the prompt is empty; give at least one character")
        room = sys.maxsize if self.endless else self.context - len(ids) + 1
        if room < 1:
            raise ContextLengthError(f"the prompt has {len(ids)} tokens, the context room for {self.context}; "
                                     + self._for_room(len(ids)))
        followed = Grammar.of(schema, regex, grammar)
        if followed is not None and ignore_eos:
            raise ModelError("ignore_eos does not go with a schema or grammar, whose end is the answer's")
        constraint = self._loaded_grammars().constraint(followed) if followed is not None else None
        return Generation(Answer(
            self._computing(ids, wait), self.tokenizer, ids, room, max_tokens=max_tokens, sampling=sampling,
            stop=stop, logprobs=logprobs, ignore_eos=ignore_eos, constraint=constraint, calls=calls,
            thinking=thoughts, max_loss=max_loss, price=self.price))

    def chat(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
             tool_choice: Choice = "auto", parallel_tool_calls: bool = True, schema: Schema | None = None,
             thinking: bool | None = None, template_values: Mapping[str, Any] | None = None,
             **settings: Any) -> Generation:
        """Answer a conversation. messages: dicts with `role` (system, user, assistant, tool) and `content`; what was
        thought before an answer is its `reasoning_content`.

        tools: functions that the model may call, as OpenAI's API has them: {"type": "function", "function": {"name",
        "description", "parameters": a JSON schema}}. Its calls are `Generation.tool_calls`, and come in pieces as
        `Piece.calls`; go on with a message of role assistant that has them as `tool_calls`, and one of role tool for
        each result. tool_choice: "none", "auto", "required" (the answer is a call), or the name of a function, as a
        text or as {"type": "function", "function": {"name": ...}} (a call of it). parallel_tool_calls: whether an
        answer may have several. schema: as of `generate`, for an answer that calls nothing.

        thinking: whether the model thinks before it answers, where its template lets one choose; None for what it does
        by itself. What it thinks comes as `Piece.thinking`. It does not think where the answer follows a schema, a
        grammar or a tool_choice. template_values: further variables of the chat template.

        Takes the other settings of `generate`, and returns what it returns. Raises what `generate` raises, and
        TemplateError if the model has no chat template, if it refuses the messages, or has no place for tools.
        """
        follows = (schema is not None or (bool(tools) and tool_choice not in ("none", "auto"))
                   or any(settings.get(name) is not None for name in ("regex", "grammar")))
        ids, begun = self._rendered(messages, tools if tool_choice != "none" else None,
                                    False if follows else thinking, template_values)
        thoughts = None
        if self._thought_marks and not follows:
            thoughts = ThoughtReader(self._thought_marks, begun=begun, answer=answer_marks_in(self._template.text))
        if not tools and tool_choice not in ("none", "auto"):
            raise ModelError(f"tool_choice is {tool_choice!r}, but there are no tools; give tools too")
        if not tools or tool_choice == "none":
            return self.generate(ids, schema=schema, thoughts=thoughts, **settings)
        offered = Tools.of(tools)
        for name in ("regex", "grammar"):
            if settings.pop(name, None) is not None:
                raise ModelError(f"tools and {name} were given; an answer that follows the {name} calls nothing")
        grammar = offered.grammar(tool_choice, self._template.text, self.tokenizer.ids_of(MARKS), schema)
        calls = CallReader(offered.parameters, most=None if parallel_tool_calls else 1)
        return self.generate(ids, calls=calls, thoughts=thoughts, grammar=grammar, **settings)

    def render(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
               thinking: bool | None = None, template_values: Mapping[str, Any] | None = None) -> list[int]:
        """The token ids of a conversation, written with the model's chat template up to where the answer starts; with
        the tools and the other settings of `chat`.

        Only the template can make special tokens: their names in messages are plain text. Raises TemplateError.
        """
        return self._rendered(messages, tools, thinking, template_values)[0]

    @property
    def thinks(self) -> bool:
        """Whether the model can think before it answers, as far as its chat template and its vocabulary tell."""
        return self.chat_template is not None and self._thought_marks is not None

    def _rendered(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None,
                  thinking: bool | None, values: Mapping[str, Any] | None) -> tuple[list[int], bool]:
        """What `render` returns, and whether the model is thinking where the answer starts."""
        for message in messages:
            self._check_length(message.get("content"))
        template = self._template
        if tools and "tools" not in template.text:
            raise TemplateError("The model's chat template has no place for tools; use a model that was made for them.")
        values = {**(values or {}), **({} if thinking is None else dict.fromkeys(SWITCHES, thinking))}
        text, given = template.render(with_arguments_read(messages), tools=Tools.of(tools).given if tools else None,
                                      values=values)
        begun = self._begins_thought(text, given)
        if begun and False in [values.get(name) for name in SWITCHES]:
            assert self._thought_marks is not None
            end = f"\n{self._thought_marks.end}\n\n"
            text, given, begun = text.rstrip() + end, given[:len(text.rstrip())] + bytes(len(end)), False
        self._check_length(text)
        bos = self._token_name(self.tokenizer.bos_token_id)
        has_bos = bos and text.startswith(bos) and not any(given[:len(bos)])
        return self.tokenizer.encode(text, given=given, add_bos=False if has_bos else None), begun

    def _begins_thought(self, text: str, given: bytes) -> bool:
        """Whether a prompt ends with the mark that thinking begins with, written by the template."""
        end = len(text.rstrip())
        marks = self._thought_marks
        return marks is not None and text.endswith(marks.begin, 0, end) and not any(given[end - len(marks.begin):end])

    @cached_property
    def _thought_marks(self) -> Marks | None:
        """Raises TemplateError if the model has no chat template."""
        ends = [marks.end for marks in THOUGHT_MARKS]
        named = [*self.tokenizer.ids_of(ends), *(end for end in ends if len(self.tokenizer.encode_within(end)) == 1)]
        return marks_in(self._template.text, named)

    @cached_property
    def _template(self) -> ChatTemplate:
        """The chat template, compiled once. Raises TemplateError if the model has none."""
        tokenizer = self.tokenizer
        return ChatTemplate(self.chat_template, self._token_name(tokenizer.bos_token_id),
                            self._token_name(next(iter(tokenizer.eos_token_ids), None)))

    def _token_name(self, index: int | None) -> str:
        return "" if index is None else self.tokenizer.id_to_token(index) or ""

    def _check_length(self, text: Any) -> None:
        """Raises ModelError for a text that is far too long: tokenizing it first would take much memory."""
        if isinstance(text, str) and len(text) > _LONGEST_TOKEN * self.context and not self.endless:
            raise ContextLengthError(f"the prompt has {len(text)} characters, far more than fit in a context of "
                                     f"{self.context} tokens; shorten it or raise the context")

    def _for_room(self, tokens: int) -> str:
        """What can be done where a prompt has more tokens than the context."""
        if tokens <= self.longest_context:
            return "shorten it or raise the context"
        return (f"shorten it: this model takes {self.longest_context}; or, with a kv_policy like heavy, it reads all "
                "and keeps a part of it in mind")

    def _checked_for_scores(self, tokens: Sequence[int], top: int, start: int) -> list[int]:
        """The tokens of a text that is to be scored. Raises ModelError."""
        ids = [int(token) for token in tokens]
        if not ids:
            raise ModelError("there are no tokens to score; give at least one")
        if len(ids) > self.context:
            raise ModelError(f"the text has {len(ids)} tokens, the context room for {self.context}; "
                             "shorten it or raise the context")
        if not 0 <= top <= MOST_LOGPROBS:
            raise ModelError(f"top is {top}; it goes from 0 to {MOST_LOGPROBS}")
        if not 1 <= start <= len(ids):
            raise ModelError(f"start is {start}; for a text of {len(ids)} tokens it goes from 1 to {len(ids)}")
        return ids
