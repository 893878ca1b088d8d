"""Prompt lookup against a search through everything, and the memory that it takes."""

import random
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from edgert.speculation.lookup import Lookup, Proposal


def follows(tokens: list[int]) -> Lookup:
    lookup = Lookup()
    lookup.follow(tokens)
    return lookup


def by_search(tokens: list[int], most: int) -> Proposal:
    """Every length, longest first, at every earlier end, latest first."""
    for match in range(len(tokens) - 1, 1, -1):
        for end in range(len(tokens) - 1, match - 1, -1):
            if tokens[end - match:end] == tokens[-match:]:
                proposed: list[int] = []
                for index in range(end, end + most):
                    proposed.append([*tokens, *proposed][index])
                return Proposal(proposed, match)
    return Proposal([], 0)


few_words = st.lists(st.sampled_from([0, 1, 2, (1 << 32) - 1]), max_size=40)


@given(few_words, st.integers(0, 20))
def test_the_longest_match_and_its_latest_occurrence(tokens: list[int], most: int) -> None:
    assert follows(tokens).propose(most) == by_search(tokens, most)


@given(st.lists(st.one_of(
    st.tuples(st.just("add"), st.lists(st.integers(0, 2), max_size=6)),
    st.tuples(st.just("copy"), st.integers(0, 6)),
    st.tuples(st.just("drop"), st.integers(0, 30)),
    st.tuples(st.just("set"), st.lists(st.integers(0, 2), max_size=20)),
    st.tuples(st.just("propose"), st.integers(0, 6))), max_size=30))
def test_any_history(steps: list[tuple[str, int | list[int]]]) -> None:
    """Added, continued as was proposed, cut off, replaced, with proposals in between or without."""
    lookup, tokens = Lookup(), list[int]()
    for step, argument in steps:
        if isinstance(argument, list):
            tokens = argument if step == "set" else tokens + argument
        elif step == "copy":
            tokens = tokens + by_search(tokens, argument).tokens
        elif step == "drop":
            tokens = tokens[:max(len(tokens) - argument, 0)]
        else:
            assert lookup.propose(argument) == by_search(tokens, argument)
        lookup.follow(tuple(tokens))
    assert lookup.propose(5) == by_search(tokens, 5)
    assert (lookup._latest, lookup._earlier) == (follows(tokens)._latest, follows(tokens)._earlier)


def test_examples() -> None:
    assert follows([]).propose(3) == ([], 0)
    assert follows([1]).propose(3) == ([], 0)
    assert follows([1, 2, 3, 1]).propose(3) == ([], 0)
    assert follows([1, 2, 3, 4, 1, 2]).propose(2) == ([3, 4], 2)
    assert follows([1, 2, 1, 2, 1, 2]).propose(5) == ([1, 2, 1, 2, 1], 4)
    assert follows([7, 7, 7]).propose(4) == ([7, 7, 7, 7], 2)
    assert follows([5, 1, 2, 8, 1, 2, 9, 5, 1, 2]).propose(1) == ([8], 3)
    assert follows([1, 2, 8, 1, 2, 9, 1, 2]).propose(1) == ([9], 2)


def test_the_caller_keeps_its_list() -> None:
    tokens = [1, 2, 3, 1, 2]
    lookup = follows(tokens)
    tokens.append(4)
    assert lookup.propose(1) == ([3], 2)
    lookup.propose(1).tokens.append(5)
    assert lookup.propose(1) == ([3], 2)


def test_memory_per_token() -> None:
    """Of tokens of which no two pairs are equal, where the table of pairs has just grown."""
    tokens = random.Random(1).sample(range(152_000), 22_000)
    tracemalloc.start()
    try:
        lookup = follows(tokens)
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lookup.propose(1) == ([], 0)
    assert held < 140 * len(tokens)
    assert most < 180 * len(tokens)
