"""Speculative decoding with the model itself as its draft: several tokens are guessed, then one pass checks them all.

What stays in memory of the weights is a coarser model (residency.drafting), which guesses token after token without
waiting for flash; one pass over all weights, which reads the same bytes for many tokens as for one, then computes the
exact model's choice after each of them (Leviathan et al. 2023, "Fast Inference from Transformers via Speculative
Decoding"; Zhang et al. 2024, "Draft & Verify", for drafting with a part of the same model). Guesses are also taken from
what followed the last tokens before (lookup.py): they cost nothing. Only what the exact model chooses becomes part of
an answer, and choices depend on nothing but logits and place (generation.sampling): answers are those without
speculation, also sampled ones. Unless an answer may be lenient (generation.lenience), which is a mode of its own.

A guess is worth its time as long as the probability that it and all before it are right, divided by what it costs, is
more than the tokens a second that come anyway.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from edgert.engine.engine import Engine, NewTokens
from edgert.engine.session import Session
from edgert.engine.worker import CancelledError
from edgert.errors import ModelError
from edgert.generation.steps import Choosing, Chosen, Step

from .costs import IN_MEMORY, OF_EXPERTS, STREAMED, Costs
from .lookup import Lookup
from .odds import Odds, draft_odds, lookup_odds, sibling_odds

OFF, AUTO = "off", "auto"
MOST = 16
"""Tokens guessed before a pass."""
_ROW_S = 5e-4
"""Seconds that checking a token more takes at least: choosing after it."""


class _Guess(NamedTuple):
    token: int
    sure: float
    """Margin of a draft; length of the match of what was looked up."""
    odds: Odds
    """What is known of guesses of its kind."""
    second: int = -1
    """The draft's second choice; -1 for none."""


@dataclass
class _Guesses:
    """What was guessed: drafted, and then looked up. others: so many rows of the pass that checks it are others'."""

    others: int = 0
    all: list[_Guess] = field(default_factory=list)
    siblings: list[int] = field(default_factory=list)
    """Numbers of those whose second choice is checked too."""
    alive: float = 1.0
    """The probability that all are right."""

    def add(self, guess: _Guess) -> None:
        self.all.append(guess)
        self.alive *= guess.odds.of(guess.sure)

    @property
    def tokens(self) -> list[int]:
        return [guess.token for guess in self.all]

    @property
    def rows(self) -> int:
        """Of the pass that checks it, its own."""
        return 1 + len(self.all) + len(self.siblings)


@dataclass(eq=False)
class Asked:
    """What an answer asks for: tokens that are new, and what follows them, at least one token and at most `most`.

    new: grows shorter as passes compute it. What comes of it: step, or error.
    """

    session: Session
    new: Sequence[int]
    choosing: Choosing
    most: int
    step: Step | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.step is not None or self.error is not None


def parse(mode: str | int) -> str | int:
    """A setting of speculation: "off", "auto", or how many tokens to guess before each pass. Raises ModelError."""
    number = int(mode) if isinstance(mode, str) and mode.isdecimal() else mode
    if number in (OFF, AUTO) or (isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MOST):
        return number
    raise ModelError(f"speculation is {mode!r}; give {OFF}, {AUTO}, or a number of tokens from 1 to {MOST}")


class Speculator:
    """Computes the next tokens of answers, as many as guessing makes possible.

    mode: as `parse` returns it; a number is how many tokens are drafted each time, whatever it costs.
    """

    def __init__(self, engine: Engine, mode: str | int) -> None:
        self._engine, self.mode = engine, mode
        self._lookups: WeakKeyDictionary[Session, Lookup] = WeakKeyDictionary()
        streamed = STREAMED if engine.source.streams else IN_MEMORY
        self._costs = Costs(OF_EXPERTS if engine.config.experts else streamed)
        self._draft_odds, self._lookup_odds, self._sibling_odds = draft_odds(), lookup_odds(), sibling_odds()

    def compute(self, batch: Sequence[Asked], cancel: np.ndarray | None = None) -> None:
        """One pass over the weights for all that is asked for, of different sessions: answers are as if each were
        alone. Of prompts as much as goes at once, the rest in later passes.

        The session of one that is done has all its tokens but the last. One whose error is set is as it was; and all
        are when this raises CancelledError, but for what was computed of prompts.
        """
        lengths = [asked.session.length for asked in batch]
        prompts = any(len(asked.new) > 1 for asked in batch)
        try:
            if prompts:
                self._with_prompts(batch, cancel)
            else:
                self._after_tokens(batch, cancel)
        except BaseException as error:
            if not prompts:
                for asked, length in zip(batch, lengths, strict=True):
                    asked.session.truncate(min(length, asked.session.length))
            if isinstance(error, CancelledError) or not isinstance(error, Exception):
                raise
            for asked, length in zip(batch, lengths, strict=True):  # each by itself: it is the fault of one, perhaps
                if len(batch) > 1 and asked.session.length == length:
                    self.compute([asked], cancel)
                else:
                    asked.error = error

    def _with_prompts(self, batch: Sequence[Asked], cancel: np.ndarray | None) -> None:
        """Nothing is guessed: the pass has tokens enough."""
        room = max(self._engine.chunk - sum(len(asked.new) == 1 for asked in batch), 1)
        some: list[tuple[Asked, NewTokens]] = []
        for asked in batch:
            count = 1 if len(asked.new) == 1 else min(len(asked.new), room)
            room -= count if len(asked.new) > 1 else 0
            if count:
                wanted = [count - 1] if count == len(asked.new) else []
                some.append((asked, NewTokens(asked.session, asked.new[:count], wanted)))
        for (asked, new), logits in zip(some, self._engine.forward_all([new for _, new in some], cancel=cancel),
                                        strict=True):
            asked.new = asked.new[len(new.tokens):]
            if not asked.new:
                self._choose(asked, logits[0])

    def _choose(self, asked: Asked, logits: np.ndarray) -> None:
        """The exact model's choice after tokens without guesses."""
        try:
            asked.step = Step([asked.choosing.exact(logits, [])])
        except Exception as error:
            asked.error = error

    def _after_tokens(self, batch: Sequence[Asked], cancel: np.ndarray | None) -> None:
        """What follows one token each: guess, and check all guesses in one pass."""
        started = time.perf_counter()
        all_guesses: list[_Guesses] = []
        left, others = min(self._engine.logit_rows, self._engine.chunk), 0
        for number, asked in enumerate(batch):
            share = left // (len(batch) - number) if len(batch) > 1 else None
            length = asked.session.length
            guesses = self._guesses(asked, share, others, cancel)
            asked.session.truncate(length)
            all_guesses.append(guesses)
            left, others = left - guesses.rows, others + guesses.rows
        drafted = time.perf_counter()
        tokens = self._check(batch, all_guesses, cancel)
        ended = time.perf_counter()
        # A pass for one token each is taken for one of a token as long as none was measured.
        plain = others == len(batch) and not self._costs.known
        self._costs.checked(1 if plain else others, ended - drafted)
        self._costs.came(tokens, ended - started)
        for asked in batch:
            if asked.step is not None:
                asked.step.draft_s, asked.step.verify_s = drafted - started, ended - drafted

    def _limit(self, asked: Asked, share: int | None) -> int:
        """How many tokens may be guessed. share: rows of the pass that are this answer's, None for all."""
        wanted = self.mode if isinstance(self.mode, int) else min(MOST, self._engine.logit_rows - 1)
        if share is not None:
            wanted = min(wanted, share - 1)
        return min(wanted, self._engine.chunk - 1, asked.most - 1, asked.session.room - 1)

    def _guesses(self, asked: Asked, share: int | None, others: int, cancel: np.ndarray | None) -> _Guesses:
        """Guess what follows the last token. The session may be longer afterwards. share: as of `_limit`. others: rows
        of the same pass."""
        session, last = asked.session, asked.new[0]
        guesses, before, room = _Guesses(others), [*session.tokens, last], session.room
        limit = self._limit(asked, share)
        forced = isinstance(self.mode, int) and self._engine.drafts
        if self.mode == OFF or limit < 1 or not (forced or self._costs.known):
            return guesses
        lookup = self._lookups.setdefault(session, Lookup())
        token = last
        while self._engine.drafts and len(guesses.all) < limit and (forced or self._pays(guesses, before, lookup)):
            started = time.perf_counter()
            logits = self._engine.draft(session, token, cancel=cancel)
            if np.isnan(logits[0]):
                break
            choice = asked.choosing.guess(logits, guesses.tokens)
            token = choice.token
            self._costs.drafted(time.perf_counter() - started)
            guesses.add(_Guess(token, choice.margin, self._draft_odds, choice.second))
        if not forced:
            self._look_up(guesses, before, limit, lookup)
        if not session.low:  # attention over low blocks knows no siblings
            self._add_siblings(guesses, min(room, self._engine.chunk, share or self._engine.logit_rows))
        return guesses

    def _pays(self, guesses: _Guesses, before: list[int], lookup: Lookup) -> bool:
        """Whether another draft is worth its time, and better than what can be looked up for nothing."""
        gain = guesses.alive * self._draft_odds.mean
        if gain < (self._costs.draft + self._row(guesses.others + guesses.rows)) * self._costs.rate:
            return False
        lookup.follow([*before, *guesses.tokens])
        match = lookup.propose(1).match
        return not match or gain - guesses.alive * self._lookup_odds.of(match) > self._costs.draft * self._costs.rate

    def _row(self, tokens: int) -> float:
        """Seconds that checking a token more than so many takes."""
        return max(self._costs.check(tokens + 1) - self._costs.check(tokens), _ROW_S)

    def _look_up(self, guesses: _Guesses, before: list[int], limit: int, lookup: Lookup) -> None:
        """Go on with what followed the last tokens before, as far as that pays."""
        lookup.follow([*before, *guesses.tokens])
        tokens, match = lookup.propose(limit - len(guesses.all))
        right, count = self._lookup_odds.of(match), guesses.others + guesses.rows
        gain = best = 0.0
        kept = 0
        for number in range(1, len(tokens) + 1):
            gain += guesses.alive * right ** number
            worth = gain - (self._costs.check(count + number) - self._costs.check(count)) * self._costs.rate
            if worth > best:
                best, kept = worth, number
        for token in tokens[:kept]:
            guesses.add(_Guess(token, match, self._lookup_odds))

    def _add_siblings(self, guesses: _Guesses, room: int) -> None:
        """Have second choices checked too, where that pays: each is right where all before were and the first is not,
        and then brings one token more. room: for so many tokens in a pass, `last` and all guesses among them."""
        alive, worth = 1.0, []
        for number, guess in enumerate(guesses.all):
            right = guess.odds.of(guess.sure)
            if guess.second >= 0:
                worth.append((alive * (1 - right) * self._sibling_odds.of(guess.sure), number))
            alive *= right
        count = guesses.rows
        for gain, number in sorted(worth, reverse=True)[:max(room - count, 0)]:
            if gain > self._row(guesses.others + count) * self._costs.rate:
                guesses.siblings.append(number)
                count += 1

    def _check(self, batch: Sequence[Asked], all_guesses: Sequence[_Guesses], cancel: np.ndarray | None) -> int:
        """The exact model's choice after each last token, and after each guess as long as they are right. Returns how
        many tokens came of it, of all answers."""
        lengths, held = [asked.session.length for asked in batch], [asked.session.held for asked in batch]
        every = self._engine.verify([
            NewTokens(asked.session, [asked.new[0], *guesses.tokens],
                      siblings=[(number + 1, guesses.all[number].second) for number in guesses.siblings])
            for asked, guesses in zip(batch, all_guesses, strict=True)], cancel=cancel)
        count = 0
        for number, (asked, guesses) in enumerate(zip(batch, all_guesses, strict=True)):
            step = Step([], guessed=len(guesses.all))
            try:
                self._choose_all(asked, guesses, every[number], held[number], step)
            except Exception as error:
                asked.session.truncate(lengths[number])
                asked.error = error
                continue
            asked.session.truncate(lengths[number] + len(step.chosen))
            asked.step = step
            count += len(step.chosen)
        return count

    def _choose_all(self, asked: Asked, guesses: _Guesses, every: np.ndarray, held: int, step: Step) -> None:
        """The choices of one answer. every: the logits of its tokens and siblings. held: how many positions its session
        held before."""
        tokens = guesses.tokens
        for number, guess in enumerate([*guesses.all, None]):
            chosen = asked.choosing.exact(every[number], tokens[:number])
            if guess is not None and guess.token != chosen.token and not self._costs_nothing(guesses, number, chosen):
                chosen = asked.choosing.lenient(every[number], tokens[:number], guess.token, chosen) or chosen
            step.chosen.append(chosen)
            if guess is None or chosen.ends:
                break
            guess.odds.learn(guess.sure, guess.token == chosen.token)
            if guess.token != chosen.token:
                if guess.second >= 0:
                    self._sibling_odds.learn(guess.sure, guess.second == chosen.token)
                if guess.second == chosen.token and number in guesses.siblings:
                    at = len(tokens) + 1 + guesses.siblings.index(number)
                    asked.session.adopt(held + at, held + 1 + number, chosen.token)
                    step.siblings = 1
                    step.chosen.append(asked.choosing.exact(every[at], [*tokens[:number], chosen.token]))
                break
            step.right += 1

    def _costs_nothing(self, guesses: _Guesses, number: int, chosen: Chosen) -> bool:
        """Whether the last guess need not be taken leniently: its sibling brings as much, and is right."""
        last = number + 1 == len(guesses.all)
        return last and number in guesses.siblings and guesses.all[number].second == chosen.token
