"""Speculative decoding with the model itself as its draft: several tokens are guessed, then one pass checks them all.

What stays in memory of the weights is a coarser model (residency.drafting), which guesses token after token without
waiting for flash; one pass over all weights, which reads the same bytes for many tokens as for one, then computes the
exact model's choice after each of them (Leviathan et al. 2023, "Fast Inference from Transformers via Speculative
Decoding"; Zhang et al. 2024, "Draft & Verify", for drafting with a part of the same model). Guesses are also taken from
what followed the last tokens before (lookup.py): they cost nothing. Only what the exact model chooses becomes part of
an answer, and choices depend on nothing but logits and place (generation.sampling): answers are those without
speculation, also sampled ones.

A guess is worth its time as long as the probability that it and all before it are right, divided by what it costs, is
more than the tokens a second that come anyway.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from edgert.engine.engine import Engine, NewTokens
from edgert.engine.session import Session
from edgert.errors import ModelError
from edgert.generation.steps import Choosing, Step

from .costs import Costs
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
    """What was guessed: drafted, and then looked up."""

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


def parse(mode: str | int) -> str | int:
    """A setting of speculation: "off", "auto", or how many tokens to guess before each pass. Raises ModelError."""
    number = int(mode) if isinstance(mode, str) and mode.isdecimal() else mode
    if number in (OFF, AUTO) or (isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MOST):
        return number
    raise ModelError(f"speculation is {mode!r}; give {OFF}, {AUTO}, or a number of tokens from 1 to {MOST}")


class Speculator:
    """Computes the next tokens of an answer, as many as guessing makes possible.

    mode: as `parse` returns it; a number is how many tokens are drafted each time, whatever it costs.
    """

    def __init__(self, engine: Engine, mode: str | int) -> None:
        self._engine, self._mode = engine, mode
        self._lookup, self._costs = Lookup(), Costs(streamed=engine.source.streams)
        self._draft_odds, self._lookup_odds, self._sibling_odds = draft_odds(), lookup_odds(), sibling_odds()

    def step(self, session: Session, new: Sequence[int], choosing: Choosing, most: int,
             cancel: np.ndarray | None = None) -> Step:
        """Compute new tokens, and what follows them: at least one token, at most `most`.

        The session then has all of them but the last. Raises what Engine.forward raises; then the session is as it was,
        or, when cancelled, has what was computed of `new`.
        """
        if len(new) > 1 or self._mode == OFF:
            started = time.perf_counter()
            logits = self._engine.forward(session, new, cancel=cancel)[0]
            step = Step([choosing.exact(logits, [])])
            if len(new) == 1:
                self._costs.checked(1, time.perf_counter() - started)
            return step
        started, length = time.perf_counter(), session.length
        try:
            guesses = self._guesses(session, new[0], choosing, self._limit(session, most), cancel)
            session.truncate(length)
            drafted = time.perf_counter()
            step = self._check(session, new[0], guesses, choosing, cancel)
        except BaseException:
            session.truncate(min(length, session.length))
            raise
        ended = time.perf_counter()
        self._costs.checked(1 + len(guesses.all) + len(guesses.siblings), ended - drafted)
        self._costs.came(len(step.chosen), ended - started)
        step.draft_s, step.verify_s = drafted - started, ended - drafted
        return step

    def _limit(self, session: Session, most: int) -> int:
        """How many tokens may be guessed."""
        wanted = self._mode if isinstance(self._mode, int) else min(MOST, self._engine.logit_rows - 1)
        return min(wanted, self._engine.chunk - 1, most - 1, session.room - 1)

    def _guesses(self, session: Session, last: int, choosing: Choosing, limit: int,
                 cancel: np.ndarray | None) -> _Guesses:
        """Guess what follows `last`. The session may be longer afterwards."""
        guesses, before, room = _Guesses(), [*session.tokens, last], session.room
        forced = isinstance(self._mode, int) and self._engine.drafts
        if limit < 1 or not (forced or self._costs.known):
            return guesses
        token = last
        while self._engine.drafts and len(guesses.all) < limit and (forced or self._pays(guesses, before)):
            started = time.perf_counter()
            logits = self._engine.draft(session, token, cancel=cancel)
            if np.isnan(logits[0]):
                break
            choice = choosing.guess(logits, guesses.tokens)
            token = choice.token
            self._costs.drafted(time.perf_counter() - started)
            guesses.add(_Guess(token, choice.margin, self._draft_odds, choice.second))
        if not forced:
            self._look_up(guesses, before, limit)
        if not session.low:  # attention over low blocks knows no siblings
            self._add_siblings(guesses, min(room, self._engine.chunk, self._engine.logit_rows))
        return guesses

    def _pays(self, guesses: _Guesses, before: list[int]) -> bool:
        """Whether another draft is worth its time, and better than what can be looked up for nothing."""
        gain = guesses.alive * self._draft_odds.mean
        if gain < (self._costs.draft + self._row(len(guesses.all) + 1)) * self._costs.rate:
            return False
        self._lookup.follow([*before, *guesses.tokens])
        match = self._lookup.propose(1).match
        return not match or gain - guesses.alive * self._lookup_odds.of(match) > self._costs.draft * self._costs.rate

    def _row(self, tokens: int) -> float:
        """Seconds that checking a token more than so many takes."""
        return max(self._costs.check(tokens + 1) - self._costs.check(tokens), _ROW_S)

    def _look_up(self, guesses: _Guesses, before: list[int], limit: int) -> None:
        """Go on with what followed the last tokens before, as far as that pays."""
        self._lookup.follow([*before, *guesses.tokens])
        tokens, match = self._lookup.propose(limit - len(guesses.all))
        right, count = self._lookup_odds.of(match), 1 + len(guesses.all)
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
        count = 1 + len(guesses.all)
        for gain, number in sorted(worth, reverse=True)[:max(room - count, 0)]:
            if gain > self._row(count) * self._costs.rate:
                guesses.siblings.append(number)
                count += 1

    def _check(self, session: Session, last: int, guesses: _Guesses, choosing: Choosing,
               cancel: np.ndarray | None) -> Step:
        """The exact model's choice after `last`, and after each guess as long as they are right."""
        tokens, length, held = guesses.tokens, session.length, session.held
        siblings = [(number + 1, guesses.all[number].second) for number in guesses.siblings]
        step = Step([], guessed=len(tokens))
        every = self._engine.verify(NewTokens(session, [last, *tokens], siblings=siblings), cancel=cancel)
        for number, guess in enumerate([*guesses.all, None]):
            chosen = choosing.exact(every[number], tokens[:number])
            step.chosen.append(chosen)
            if guess is None or chosen.ends:
                break
            guess.odds.learn(guess.sure, guess.token == chosen.token)
            if guess.token != chosen.token:
                if guess.second >= 0:
                    self._sibling_odds.learn(guess.sure, guess.second == chosen.token)
                if guess.second == chosen.token and number in guesses.siblings:
                    at = len(tokens) + 1 + guesses.siblings.index(number)
                    session.adopt(held + at, held + 1 + number, chosen.token)
                    step.siblings = 1
                    step.chosen.append(choosing.exact(every[at], [*tokens[:number], chosen.token]))
                break
            step.right += 1
        session.truncate(length + len(step.chosen))
        return step
