"""What an answer may lose is never overdrawn."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import ModelError
from edgert.generation.lenience import Account


@given(st.floats(0.001, 1), st.lists(st.tuples(st.integers(1, 40), st.floats(0, 3)), max_size=60))
def test_never_overdrawn(max_loss: float, guesses: list[tuple[int, float]]) -> None:
    """guesses: after how many tokens each comes, and what it costs."""
    account, number, taken = Account(max_loss), 0, []
    for more, cost in guesses:
        number += more
        if account.pays(cost, number):
            taken.append(cost)
            assert cost <= 1, "what is e times less likely is never taken"
        assert account.spent == pytest.approx(sum(taken)) and account.taken == len(taken)
        assert math.exp(account.spent / number) <= 1 + max_loss + 1e-9


def test_what_was_saved_long_ago_is_gone() -> None:
    """So that a long passage without any loss does not make the next one bad."""
    account = Account(0.001)
    assert not account.pays(0.2, 100_000) and account.pays(0.09, 100_000)
    assert account.spent == 0.09


def test_nothing_may_be_lost() -> None:
    assert not Account(0).open and Account(1e-9).open
    assert not Account(0).pays(1e-6, 1000)


@pytest.mark.parametrize("max_loss", [-0.1, 1.1, math.nan, math.inf, "3%", None])
def test_out_of_range(max_loss: Any) -> None:
    with pytest.raises(ModelError, match=r"max_loss is .*; it goes from 0 to 1, for 100 %"):
        Account(max_loss)
