"""Text of a rendering: it does what str does, and its marks follow the characters."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.text.template_text import GIVEN, OWN, Meter, RefusedError, Text

OWN_CHARACTERS, GIVEN_CHARACTERS = "<|ax \n\r", ">!BX\t\u2028é"
characters = st.sampled_from(OWN_CHARACTERS + GIVEN_CHARACTERS)
words = st.text(characters, max_size=12)
pieces = st.text(characters, min_size=1, max_size=2)
limits = st.integers(-1, 4)
bounds = st.none() | st.integers(-15, 15)


def text(value: str, meter: Meter) -> Text:
    """Text whose characters say by themselves who gave them."""
    return Text(value, b"".join(GIVEN if character in GIVEN_CHARACTERS else OWN for character in value), meter)


def check(result: Any, expected: Any, meter: Meter) -> None:
    """Equal, and every character has the mark that it began with."""
    if isinstance(expected, str):
        assert isinstance(result, Text) and str.__str__(result) == expected
        assert result._given == text(expected, meter)._given
    else:
        assert type(result) is type(expected) and len(result) == len(expected)
        for part, other in zip(result, expected, strict=True):
            check(part, other, meter)


@given(words, words, pieces, st.lists(words, max_size=4), limits, bounds, bounds, st.sampled_from([-2, -1, 1, 2]))
def test_marks_follow_the_characters(value: str, other: str, part: str, items: list[str], limit: int,
                                     start: int | None, stop: int | None, step: int) -> None:
    meter = Meter(1 << 30, 100)
    operations: list[Callable[[Any, Callable[[str], Any]], Any]] = [
        lambda s, t: s + t(other), lambda s, t: s * limit, lambda s, t: limit * s, lambda s, t: s[start:stop:step],
        lambda s, t: s.strip(), lambda s, t: s.lstrip(part), lambda s, t: s.rstrip(part),
        lambda s, t: s.split(), lambda s, t: s.split(part, limit), lambda s, t: s.split(None, limit),
        lambda s, t: s.rsplit(part, limit), lambda s, t: s.rsplit(None, limit), lambda s, t: s.splitlines(),
        lambda s, t: s.splitlines(True), lambda s, t: s.partition(part), lambda s, t: s.rpartition(part),
        lambda s, t: s.replace(part, t(other), limit), lambda s, t: s.join([t(item) for item in items]),
        lambda s, t: s.removeprefix(part), lambda s, t: s.removesuffix(part), lambda s, t: list(s),
        lambda s, t: s.center(9, t("|")), lambda s, t: s.ljust(9, t("!")), lambda s, t: s.rjust(8, t("x")),
        lambda s, t: t("<%s|%%") % s, lambda s, t: t("%s%s") % (s, t(other)),
    ]
    for operation in operations:
        check(operation(text(value, meter), lambda plain: text(plain, meter)),
              operation(value, lambda plain: plain), meter)


@given(st.text(max_size=8), st.sampled_from(["upper", "lower", "title", "capitalize", "swapcase", "casefold"]))
def test_other_cases(value: str, method: str) -> None:
    """Where a letter becomes two, all counts as given."""
    meter = Meter(1 << 30, 100)
    result = getattr(Text(value, OWN * len(value), meter), method)()
    assert result == getattr(value, method)()
    assert len(result._given) == len(result)
    assert (GIVEN in result._given) == (len(result) != len(value))


@given(st.text("%sdrxg.0123456789 -+#(a)*a", max_size=8), st.sampled_from([
    (), ("x",), (1,), (1.5, "y"), "x", 7, {"a": 1}, [1], None]))
def test_formatting_is_pythons(form: str, values: Any) -> None:
    meter = Meter(1 << 20, 100)
    try:
        expected = form % values
    except (TypeError, ValueError, KeyError, OverflowError):
        expected = None
    try:
        assert Text(form, OWN * len(form), meter) % values == expected
    except RefusedError:
        pass  # widths that are large or computed
    except (TypeError, ValueError, KeyError, OverflowError):
        assert expected is None


def test_what_is_made_is_paid_for() -> None:
    meter = Meter(1000, 100)
    for _ in range(2):
        text("a", meter)
    with pytest.raises(RefusedError, match="too much text"):
        text("a" * 100, meter) * 10
