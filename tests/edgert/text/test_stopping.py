"""Stop strings in streamed text."""

from hypothesis import given
from hypothesis import strategies as st

from edgert.text.stopping import StopStrings


def streamed(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher, out = StopStrings(stops), ""
    for piece in pieces:
        out += matcher.push(piece)
        if matcher.found:
            return out, True
    return out + matcher.flush(), False


def test_a_stop_string_across_pieces_is_not_shown() -> None:
    assert streamed(["Hello <|", "im_", "end|> more"], ["<|im_end|>"]) == ("Hello ", True)


def test_what_turns_out_otherwise_is_shown() -> None:
    assert streamed(["a <|im", "age"], ["<|im_end|>"]) == ("a <|image", False)


def test_text_is_not_held_longer_than_needed() -> None:
    matcher = StopStrings(["END"])
    assert matcher.push("the E") == "the "
    assert matcher.push("x") == "Ex"


def test_no_stops_and_empty_ones_pass_everything() -> None:
    assert streamed(["a", "b"], []) == ("ab", False)
    assert streamed(["a", "b"], [""]) == ("ab", False)


@given(st.lists(st.text("abc", max_size=4), max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_equals_searching_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    # A stop is found as soon as it is complete: the one that ends first decides.
    ends = [at + len(stop) for stop in stops if (at := whole.find(stop)) >= 0]
    out, found = streamed(pieces, stops)
    assert found == bool(ends)
    if not found:
        assert out == whole
    else:
        assert whole.startswith(out)
        assert not any(stop in out for stop in stops)
