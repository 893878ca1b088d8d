"""One answer, generated token by token."""

import contextlib
import math
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from edgert.text.stopping import StopStrings
from edgert.text.tokenizer import AnyTokenizer

from .grammar import Constraint
from .lenience import Account
from .sampling import Choice, Sampler, Sampling, likeliest, log_sum_exp
from .steps import Choosing, Chosen, Step
from .thinking import MARKS as THOUGHT_MARKS
from .thinking import Parted, ThoughtReader
from .tool_calls import MARKS, CallDelta, CallReader, Read, ToolCall


@dataclass(frozen=True)
class Piece:
    """What one token adds to an answer.

    text: new text; empty while a character or a stop string may still be incomplete. token_id: the token; None in the
    last piece, which has the rest of the text. logprob: the token's natural log-probability under the model, before
    any sampling setting. top_logprobs: (token id, log-probability) of the most likely tokens; both only if asked for.
    finish_reason: only in the last piece: "stop" (the model or a stop string ended the answer), "length", or
    "tool_calls", which is "stop" for an answer that calls functions. calls: what the token, or those before it, add to
    such calls, which are not part of the text. thinking: new text that the model thinks before it answers, which is not
    part of the text either.
    """

    text: str
    token_id: int | None = None
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] = field(default_factory=list)
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None
    calls: list[CallDelta] = field(default_factory=list)
    thinking: str = ""


@dataclass
class Statistics:
    """Statistics of one answer. Times are in seconds.

    prompt_computed: the prompt tokens that were not in the key-value cache already. flash_bytes, flash_wait_s: what was
    read from flash, and how long computing waited for it, while decoding; with _prompt: during prefill.
    passes: over all weights, while decoding. guessed: tokens that were guessed before a pass that checked them; right,
    wrong: those of them that were what the model chose, and that were not; what follows a wrong one is neither.
    siblings: wrong ones whose second choice was checked too, and right.
    lenient: how many of the right ones were not what the model chose, but taken for what `max_loss` allows; loss: what
    that cost of the answer's likelihood, in nats (lenience.py).
    draft_s, verify_s: times of guessing and of the passes that checked.
    """

    prompt_tokens: int = 0
    prompt_computed: int = 0
    first_token_s: float = 0.0
    generated_tokens: int = 0
    decode_s: float = 0.0
    flash_bytes: int = 0
    flash_bytes_prompt: int = 0
    flash_wait_s: float = 0.0
    flash_wait_prompt_s: float = 0.0
    passes: int = 0
    guessed: int = 0
    right: int = 0
    wrong: int = 0
    siblings: int = 0
    draft_s: float = 0.0
    verify_s: float = 0.0
    lenient: int = 0
    loss: float = 0.0

    @property
    def loss_per_token(self) -> float:
        """By how much the answer is less likely a token than if each were the model's choice: 0.03 for 3 %."""
        return math.expm1(self.loss / self.generated_tokens) if self.generated_tokens else 0.0

    @property
    def tokens_per_pass(self) -> float:
        return (self.generated_tokens - 1) / self.passes if self.passes else 0.0

    @property
    def agreement(self) -> float:
        """The share of right ones of the guesses that were right or wrong."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else 0.0

    @property
    def prefill_tok_s(self) -> float:
        return self.prompt_computed / self.first_token_s if self.first_token_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """Tokens per second after the first token."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s and self.generated_tokens > 1 else 0.0

    @property
    def flash_bytes_per_token(self) -> float:
        return self.flash_bytes / max(self.generated_tokens - 1, 1)

    @property
    def flash_bandwidth(self) -> float:
        """Bytes per second read from flash while decoding."""
        return self.flash_bytes / self.decode_s if self.decode_s else 0.0

    @property
    def flash_wait_share(self) -> float:
        """The fraction of the decoding time in which computing waited for flash."""
        return self.flash_wait_s / self.decode_s if self.decode_s else 0.0


class Computing(NamedTuple):
    """The functions through which an answer uses the model."""

    begin: Callable[[], int]
    """Takes the model's turn, waiting for it if asked to. Returns how many prompt tokens are in the cache already."""
    step: Callable[[Sequence[int], Choosing, int], Step]
    """Computes new tokens and chooses what follows: one token or more, at most as many as the third argument says."""
    end: Callable[[], None]
    """Gives the turn back."""
    flash: Callable[[], tuple[int, float]]
    """Returns bytes read from flash so far, and seconds that computing has waited for them."""
    computed: Callable[[], int]
    """Returns how many tokens of prompt and answer have been computed; 0 where the answer does not have its turn."""


class Generation:
    """An answer while it is generated: an iterator of `Piece`s.

    `token_ids`, `tool_calls`, `thinking` and `statistics` grow with it. It has the model from its first piece to its
    last, or until it is closed or garbage-collected. An answer that is never asked for a piece never has the model.
    """

    def __init__(self, answer: "Answer") -> None:
        self.prompt_ids, self.token_ids, self.statistics = answer.prompt_ids, answer.token_ids, answer.statistics
        self.tool_calls: list[ToolCall] = answer.calls.calls if answer.calls is not None else []
        self._thoughts = answer.thoughts
        # What makes the pieces has no reference to this object: so both end when this object's last reference goes, not
        # at the next collection of cyclic garbage.
        self._pieces = answer.pieces()
        self._computed = answer.computing.computed
        self._end = weakref.finalize(self, answer.computing.end)
        self._end.atexit = False

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    @property
    def computed(self) -> int:
        """How many tokens of prompt and answer have been computed: before its first piece, how far the prompt has come.
        0 before it has the model, and after."""
        return self._computed()

    @property
    def thinking(self) -> str:
        """What the model has thought so far before it answers."""
        return "".join(self._thoughts)

    def close(self) -> None:
        """End the answer now. A thread that is waiting for its next piece gets a ModelError."""
        with contextlib.suppress(ValueError):  # that thread is in it
            self._pieces.close()
        self._end()

    def text(self) -> str:
        """Generate the rest of the answer and return its text."""
        return "".join(piece.text for piece in self)


class Answer:
    """Makes the pieces of one answer: computes, samples, decodes text, looks for stop strings, keeps statistics."""

    def __init__(self, computing: Computing, tokenizer: AnyTokenizer, prompt: Sequence[int], room: int, *,
                 max_tokens: int | None, sampling: Sampling, stop: Sequence[str], logprobs: int | None,
                 ignore_eos: bool, constraint: Constraint | None, calls: CallReader | None,
                 thinking: ThoughtReader | None, max_loss: float = 0.0,
                 price: float = 0.0) -> None:
        self.computing = computing
        self.prompt_ids = list(prompt)
        self.token_ids: list[int] = []
        self.statistics = Statistics(prompt_tokens=len(prompt), prompt_computed=len(prompt))
        self._tokenizer = tokenizer
        self._limit = room if max_tokens is None else min(max_tokens, room)
        self._sampler, self._account = Sampler(sampling), Account(max_loss, price)
        self._stops = StopStrings(stop)
        self._logprobs = logprobs
        self._constraint = constraint
        self.calls = calls
        self.thoughts: list[str] = []
        self._thinking = thinking
        self._ends = () if ignore_eos else tokenizer.eos_token_ids

    def pieces(self) -> Generator[Piece, None, None]:
        try:
            yield from self._pieces_of_tokens()
        finally:
            self.computing.end()

    def _pieces_of_tokens(self) -> Generator[Piece, None, None]:
        read = [*(MARKS if self.calls is not None else ()),
                *(mark for marks in THOUGHT_MARKS for mark in marks if self._thinking is not None)]
        decoder = self._tokenizer.stream_decoder(skip_special=True, shown=self._tokenizer.ids_of(read).values())
        reason: Literal["stop", "length"] = "length"
        held = self.computing.begin()
        self.statistics.prompt_computed -= held
        last = time.perf_counter()
        flash = self.computing.flash()
        computed, came = held, list[Chosen]()
        choosing = Choosing(self._exact, self._guess, self._lenient)
        while reason == "length":
            for chosen in self._and_forced(came):
                if chosen.ends:
                    reason = "stop"
                    break
                self.token_ids.append(chosen.token)
                self.statistics.generated_tokens += 1
                thought, said = self._read(self._stops.push(decoder.push(chosen.token)))
                yield Piece(said.text, chosen.token, chosen.logprob, list(chosen.top), calls=said.calls,
                            thinking=thought)
                if self._stops.found or (self.calls is not None and self.calls.enough):
                    reason = "stop"
                    break
            if reason == "stop" or len(self.token_ids) >= self._limit:
                break
            if self._constraint is not None and self._constraint.complete(self.token_ids):
                reason = "stop"
                break
            step = self.computing.step(self._from(computed), choosing, self._limit - len(self.token_ids))
            now = time.perf_counter()
            before, flash = flash, self.computing.flash()
            self._count(step, now - last, flash[0] - before[0], flash[1] - before[1], first=not came)
            last, came = now, step.chosen
            computed = len(self.prompt_ids) + len(self.token_ids) + len(came) - 1
        self.computing.end()  # before the last piece: after it nobody asks for another
        rest = "" if self._stops.found else self._stops.push(decoder.flush()) + self._stops.flush()
        thought, said = self._read(rest, last=True)
        called = self.calls is not None and self.calls.calls
        yield Piece(said.text, finish_reason="tool_calls" if called and reason == "stop" else reason, calls=said.calls,
                    thinking=thought)

    def _read(self, text: str, *, last: bool = False) -> tuple[str, Read]:
        """What of a text is thought; and what is said, with what it adds to calls."""
        parted = self._thinking.push(text) if self._thinking is not None else Parted(text=text)
        if last and self._thinking is not None:
            rest = self._thinking.flush()
            parted = Parted(parted.thought + rest.thought, parted.text + rest.text)
        if parted.thought:
            self.thoughts.append(parted.thought)
        if self.calls is None:
            return parted.thought, Read(parted.text)
        read = self.calls.push(parted.text)
        if last:
            read.text += self.calls.flush().text
        return parted.thought, read

    def _and_forced(self, chosen: Sequence[Chosen]) -> Iterator[Chosen]:
        """Tokens that were chosen, and those that must follow when they have become part of the answer: these are not
        computed one by one, unless their probabilities are wanted."""
        yield from chosen
        if self._constraint is not None and self._logprobs is None:
            for token in self._constraint.forced(self.token_ids)[:self._limit - len(self.token_ids)]:
                yield Chosen(token)

    def _from(self, start: int) -> list[int]:
        """Prompt and answer from a position on."""
        prompt = len(self.prompt_ids)
        return [*self.prompt_ids[start:], *self.token_ids[max(start - prompt, 0):]]

    def _count(self, step: Step, seconds: float, read: int, waited: float, *, first: bool) -> None:
        """Add a step to the statistics. seconds: since the one before; read, waited: of flash."""
        s = self.statistics
        if first:
            s.first_token_s, s.flash_bytes_prompt, s.flash_wait_prompt_s = seconds, read, waited
            return
        s.decode_s += seconds
        s.flash_bytes += read
        s.flash_wait_s += waited
        s.passes += 1
        s.guessed += step.guessed
        s.right += step.right
        s.siblings += step.siblings
        s.wrong += int(step.right < min(step.guessed, len(step.chosen)))
        s.draft_s += step.draft_s
        s.verify_s += step.verify_s
        s.lenient, s.loss = self._account.taken, self._account.spent

    def _exact(self, logits: np.ndarray, after: Sequence[int]) -> Chosen:
        return self._with_logprobs(self._choose(logits, after).token, logits)

    def _lenient(self, logits: np.ndarray, after: Sequence[int], guess: int, chosen: Chosen) -> Chosen | None:
        """An answer ends where the model ends it, and nowhere else."""
        if not self._account.open or chosen.ends or guess in self._ends:
            return None
        recent, position, answer, allowed = self._place(logits, after)
        cost = self._sampler.loss(guess, chosen.token, logits, recent, position, answer=answer, allowed=allowed)
        return self._with_logprobs(guess, logits) if self._account.pays(cost, len(answer) + 1) else None

    def _with_logprobs(self, token: int, logits: np.ndarray) -> Chosen:
        if self._logprobs is None:
            return Chosen(token, token in self._ends)
        normalizer = log_sum_exp(logits)
        top = tuple((int(index), float(logits[index]) - normalizer) for index in likeliest(logits, self._logprobs))
        return Chosen(token, token in self._ends, float(logits[token]) - normalizer, top)

    def _guess(self, logits: np.ndarray, after: Sequence[int]) -> Choice:
        return self._choose(logits, after, want_margin=True)

    def _choose(self, logits: np.ndarray, after: Sequence[int], *, want_margin: bool = False) -> Choice:
        recent, position, answer, allowed = self._place(logits, after)
        return self._sampler.choose(logits, recent, position, answer=answer, allowed=allowed, want_margin=want_margin)

    def _place(self, logits: np.ndarray, after: Sequence[int]) -> tuple[list[int], int, list[int], np.ndarray | None]:
        """What the sampler wants to know besides logits: recent, position, answer, allowed."""
        answer = [*self.token_ids, *after]
        allowed = self._constraint.allowed(answer) if self._constraint is not None else None
        if allowed is not None and not allowed[:len(logits)].any():
            allowed = None  # a draft's logits reach none of them: whatever it guesses is wrong
        return [*self.prompt_ids[-64:], *answer], len(self.prompt_ids) + len(answer), answer, allowed
