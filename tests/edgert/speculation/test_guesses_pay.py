"""What is looked up is checked where that pays, by what passes take: with times that are made up, and no engine."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edgert.speculation.lookup import Lookup
from edgert.speculation.speculator import MOST, Speculator, _Guesses


def made(experts: int) -> Speculator:
    """Of a model whose weights are streamed; experts: in each layer."""
    engine = SimpleNamespace(config=SimpleNamespace(experts=experts), source=SimpleNamespace(streams=True),
                             logit_rows=MOST + 1, chunk=32, drafts=False)
    return Speculator(cast(Any, engine), "auto")


def looked_up(speculator: Speculator, text: list[int]) -> _Guesses:
    guesses = _Guesses()
    speculator._look_up(guesses, text, MOST, Lookup())
    return guesses


def text_of(repeated: float, seed: int, length: int = 140, vocabulary: int = 6) -> list[int]:
    """Each token is the one 30 before it with probability `repeated`, and any otherwise."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocabulary, length).tolist()
    for at in range(30, length):
        if rng.random() < repeated:
            tokens[at] = tokens[at - 30]
    return tokens


def speed(speculator: Speculator, text: list[int], seconds: Callable[[int], float]) -> float:
    """Tokens a second over those without speculation. seconds: of a pass for so many tokens."""
    at, spent, costs = 30, 0.0, speculator._costs
    while at < len(text) - MOST:
        guesses = looked_up(speculator, text[:at]) if costs.known else _Guesses()
        took, right = seconds(guesses.rows), 0
        for guess, token in zip(guesses.all, text[at:], strict=False):
            guess.odds.learn(guess.sure, guess.token == token)
            if guess.token != token:
                break
            right += 1
        costs.checked(guesses.rows, took)
        costs.came(right + 1, took)
        at, spent = at + right + 1, spent + took
    return (at - 30) * seconds(1) / spent


def of_experts(tokens: int) -> float:
    """Experts that so many tokens need together, in those of one: counted (docs/notes/experts.md)."""
    return float(np.interp(tokens, [1, 2, 4, 8, 17], [1, 1.6, 2.5, 3.5, 5.5]))


def test_tokens_that_need_experts_of_their_own() -> None:
    """What stood once before is read for nothing where all tokens need the same weights, and not where each needs its
    own; a long match is worth it there too, and then only as far as it is likely."""
    short, long = [1, 2, 3, 4, 1, 2], [*range(24)] * 2
    checked = {}
    for experts in (0, 64):
        speculator = made(experts)
        speculator._costs.checked(1, 1.0)
        checked[experts] = [len(looked_up(speculator, text).all) for text in (short, long)]
    assert checked[0] == [MOST, MOST]
    assert checked[64][0] == 0 and 0 < checked[64][1] < MOST


@pytest.mark.parametrize("repeated", [0.0, 0.3, 0.6, 0.8])
@pytest.mark.parametrize("seconds", [of_experts, lambda tokens: 0.3 + 0.7 * of_experts(tokens),
                                     lambda tokens: 1 + 0.9 * (tokens - 1)], ids=["all", "most", "none shared"])
def test_never_slower_than_without(repeated: float, seconds: Callable[[int], float]) -> None:
    """But for the few passes in which it is learned how often guesses are right."""
    for seed in range(4):
        assert speed(made(64), text_of(repeated, seed), seconds) > 0.98


@pytest.mark.parametrize("seconds", [of_experts, lambda tokens: 0.3 + 0.7 * of_experts(tokens)])
def test_faster_where_what_stood_before_comes_again(seconds: Callable[[int], float]) -> None:
    assert speed(made(64), text_of(0.98, 1), seconds) > 1.2
