"""What a model thinks is parted from what it says, however the text is cut; and thinking is switched on and off."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thinking_model import ANSWER, BEGUN, SWITCHED, THOUGHT, write_thinking_gguf

import edgert
from edgert.generation.thinking import ANSWER_MARKS, MARKS, Marks, ThoughtReader, answer_marks_in, marks_in

TEMPLATES = Path(__file__).parents[2] / "golden" / "chat_templates"
QUESTION = [{"role": "user", "content": "2+2?"}]


def read(pieces: list[str], *, begun: bool = False, marks: int = 0, answer: Marks | None = None) -> tuple[str, str]:
    reader = ThoughtReader(MARKS[marks], begun=begun, answer=answer)
    parted = [*map(reader.push, pieces), reader.flush()]
    return "".join(part.thought for part in parted), "".join(part.text for part in parted)


CASES = {
    "<think>\na b\n\nc\n</think>\n\nyes </think> <think>": ("a b\n\nc", "yes </think> <think>"),
    "\n <think>a</think>b": ("a", "b"),
    "<think>\n\n</think>\n\nb\n": ("", "b\n"),
    "b <think>a</think>": ("", "b <think>a</think>"),
    "  b": ("", "  b"),
    "<thinking>a": ("", "<thinking>a"),
    "<think>a </thin </think": ("a </thin </think", ""),
    "<think>a < b <</think>c": ("a < b <", "c"),
    "<think": ("", "<think"),
    "": ("", ""),
}


@pytest.mark.parametrize("text", CASES)
def test_however_it_is_cut(text: str) -> None:
    for size in (1, 2, 3, 7, 100):
        assert read([text[at:at + size] for at in range(0, len(text), size)]) == CASES[text]


ANSWERS = {
    "<think>a</think>\n<response>\nb\n c\n</response>\n": ("a", "b\n c"),
    "<think>a</think><response>b </response> <response>c</response>": ("a", "b </response> <response>c"),
    "<think>a</think><response>b </resp": ("a", "b </resp"),
    "<think>a</think><response> b < c</r \n": ("a", "b < c</r \n"),
    "<think>a</think><response></response>": ("a", ""),
    "<think>a</think> <resp": ("a", "<resp"),
    "<think>a</think>\nb</response>": ("a", "b</response>"),
    "<response>b</response>": ("", "<response>b</response>"),
}


@pytest.mark.parametrize("text", ANSWERS)
def test_marks_around_the_answer(text: str) -> None:
    """Those of Granite 3.3, however the text is cut, and of no model whose template has none."""
    for size in (1, 2, 3, 7, 100):
        assert read([text[at:at + size] for at in range(0, len(text), size)], answer=ANSWER_MARKS) == ANSWERS[text]
    assert answer_marks_in((TEMPLATES / "llama_cpp-granite_3_3.jinja").read_text()) == ANSWER_MARKS
    assert answer_marks_in((TEMPLATES / "llama_cpp-qwen3.jinja").read_text()) is None
    said = text.removeprefix("<think>a</think>")
    assert read([text]) == (("", text) if text == said else ("a", said.lstrip()))


@given(st.lists(st.text("</response> b\n", max_size=9) | st.sampled_from(ANSWER_MARKS)))
def test_the_cut_of_a_marked_answer_changes_nothing(parts: list[str]) -> None:
    text = "".join(parts)
    found = read(["<think>a</think>", *parts], answer=ANSWER_MARKS)
    assert found == read([*"<think>a</think>" + text], answer=ANSWER_MARKS) and found[0] == "a"
    missing = len("".join(text.split())) - len("".join(found[1].split()))
    assert missing in (0, len("<response>"), len("<response></response>"))


def test_where_the_prompt_begins_the_thought() -> None:
    assert read(["\na", "\n</th", "ink>\nb"], begun=True) == ("a", "b")
    assert read(["[THINK]a</think>[/THI", "NK]b"], marks=1) == ("a</think>", "b")


@given(st.lists(st.text("<think/> \na", max_size=9) | st.sampled_from(MARKS[0])), st.booleans())
def test_the_cut_changes_nothing_and_no_letter_is_lost(parts: list[str], begun: bool) -> None:
    text = "".join(parts)
    thought, said = read(parts, begun=begun)
    assert (thought, said) == read([text], begun=begun) == read(list(text), begun=begun)
    left = iter(text)
    assert all(character in left for character in thought + said)  # in this order
    missing = len("".join(text.split())) - len("".join((thought + said).split()))
    assert missing in (0, len("<think>"), len("</think>"), len("<think></think>"))


def test_marks_are_found_in_the_template_or_the_vocabulary() -> None:
    assert marks_in("{{ '</think>' }}", []) == MARKS[0]
    assert marks_in("", ["[/THINK]"]) == MARKS[1]
    assert marks_in("<think>", []) is None


@pytest.mark.parametrize(("name", "marks"), [
    ("qwen3", MARKS[0]), ("smollm3", MARKS[0]), ("granite_3_3", MARKS[0]), ("deepseek_r1_distill_qwen", MARKS[0]),
    ("ministral_3_reasoning", MARKS[1]), ("mistral_nemo", None), ("phi_3_5", None)])
def test_real_templates_name_their_marks(name: str, marks: Marks | None) -> None:
    assert marks_in((TEMPLATES / f"llama_cpp-{name}.jinja").read_text(), []) == marks


@pytest.fixture(scope="module", params=[SWITCHED, BEGUN], ids=["switched", "begun"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[edgert.Model]:
    folder = tmp_path_factory.mktemp("thinking")
    edgert.convert(str(write_thinking_gguf(folder / "model.gguf", request.param)), folder / "model.edge")
    with edgert.load(folder / "model.edge", structured=True) as loaded:
        yield loaded


def test_pieces_say_what_is_thought(model: edgert.Model) -> None:
    answer = model.chat(QUESTION)
    pieces = list(answer)
    assert "".join(piece.thinking for piece in pieces) == answer.thinking == THOUGHT
    assert "".join(piece.text for piece in pieces) == ANSWER
    assert not any(piece.thinking and piece.text for piece in pieces)
    assert pieces[-1].finish_reason == "stop"
    assert model.thinks


def test_thinking_is_switched_off(model: edgert.Model) -> None:
    for asked in ({"thinking": False}, {"template_values": {"enable_thinking": False}}):
        answer = model.chat(QUESTION, **asked)  # type: ignore[arg-type]
        assert (answer.text(), answer.thinking) == (ANSWER, "")
    assert model.chat(QUESTION, thinking=True).text() == ANSWER


def test_an_answer_in_a_form_is_not_thought_about(model: edgert.Model) -> None:
    answer = model.chat(QUESTION, regex="It is four")
    assert (answer.text(), answer.thinking) == (ANSWER, "")


def test_an_answer_that_is_cut_has_thoughts_only(model: edgert.Model) -> None:
    answer = model.chat(QUESTION, max_tokens=4)
    pieces = list(answer)
    assert THOUGHT.startswith(answer.thinking)
    assert answer.thinking
    assert ("".join(piece.text for piece in pieces), pieces[-1].finish_reason) == ("", "length")


def test_the_next_turn_is_rendered_by_the_template(model: edgert.Model) -> None:
    turns = [*QUESTION, {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}, *QUESTION]
    assert THOUGHT not in model.tokenizer.decode(model.render(turns))


def test_a_prompt_that_is_no_chat_is_not_read(model: edgert.Model) -> None:
    answer = model.generate(model.render(QUESTION, thinking=True))
    assert "</think>" in answer.text()
    assert answer.thinking == ""


def test_what_a_caller_gives_is_no_beginning(model: edgert.Model) -> None:
    """A message that ends with the mark, where the template writes nothing behind it."""
    text, given = "a<think>", b"\1" * 8
    assert not model._begins_thought(text, given)
    assert model._begins_thought(text, bytes(8))
