"""What a model thinks before it answers: read out of the answer's text while it comes, and switched on and off.

Models think between two marks, before the answer or in its place: <think> and </think> (Qwen3, DeepSeek-R1, SmolLM3,
Granite) or [THINK] and [/THINK] (Mistral). Some chat templates write the first mark themselves, at the end of the
prompt. Granite puts marks around what it says after that too.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple


class Marks(NamedTuple):
    begin: str
    end: str


MARKS = (Marks("<think>", "</think>"), Marks("[THINK]", "[/THINK]"))
ANSWER_MARKS = Marks("<response>", "</response>")
"""What Granite 3.3 puts around what it says after it has thought."""
SWITCHES = ("enable_thinking", "thinking")
"""Variables of templates that say whether the model is to think: of Qwen3, SmolLM3 and others; of Granite, DeepSeek."""


def marks_in(template: str, tokens: Collection[str]) -> Marks | None:
    """The marks that a model thinks between: those that its template names, or its vocabulary; None if it does not
    think, as far as these tell."""
    return next((marks for marks in MARKS if marks.end in template or marks.end in tokens), None)


def answer_marks_in(template: str) -> Marks | None:
    """The marks around what a model says after it has thought; None where its template knows none."""
    return ANSWER_MARKS if ANSWER_MARKS.end in template else None


class Parted(NamedTuple):
    """What became clear with a piece of text: what is thought, and what is said."""

    thought: str = ""
    text: str = ""


class ThoughtReader:
    """Takes an answer's text in pieces, however it is cut. White space around thoughts, and around what is said after
    them, belongs to the marks. Only the beginning of an answer is thought: marks in what is said are text, but for
    those around all of it."""

    def __init__(self, marks: Marks, *, begun: bool, answer: Marks | None = None) -> None:
        """begun: the prompt ends with the first mark. answer: marks that may stand around what is said after thoughts.
        """
        self._marks, self._answer = marks, answer or Marks("", "")
        self._take: Callable[[str], Parted] = self._think if begun else self._wait
        self._thought = False
        """Whether anything was thought: white space before it is nothing."""
        self._held = ""
        """Text of which it is not clear yet what it is: white space, or the beginning of a mark."""

    def push(self, text: str) -> Parted:
        thought, said = "", ""
        for place, character in enumerate(text):
            if self._take == self._say:
                return Parted(thought, said + text[place:])
            more = self._take(character)
            thought, said = thought + more.thought, said + more.text
        return Parted(thought, said)

    def flush(self) -> Parted:
        """The end: what was held back is what it seemed to be."""
        held, self._held = self._held, ""
        if self._take == self._think:
            return Parted(held.rstrip())
        return Parted() if self._take == self._say_marked and held.strip() == self._answer.end else Parted(text=held)

    def _wait(self, character: str) -> Parted:
        self._held += character
        begun = self._held.lstrip()
        if begun == self._marks.begin:
            self._held, self._take = "", self._think
        elif not self._marks.begin.startswith(begun):
            held, self._held, self._take = self._held, "", self._say
            return Parted(text=held)
        return Parted()

    def _think(self, character: str) -> Parted:
        self._held += character if self._thought or self._held or not character.isspace() else ""
        if self._held.endswith(self._marks.end):
            thought = self._held.removesuffix(self._marks.end).rstrip()
            self._held, self._take = "", self._end
            return Parted(thought)
        begun = next(size for size in range(len(self._marks.end) - 1, -1, -1)
                     if self._held.endswith(self._marks.end[:size]))
        clear = self._held[:len(self._held) - begun].rstrip()
        self._held = self._held[len(clear):]
        self._thought = self._thought or bool(clear)
        return Parted(clear)

    def _end(self, character: str) -> Parted:
        if character.isspace() and not self._held:
            return Parted()
        self._held += character
        if self._held == self._answer.begin:
            self._held, self._take = "", self._begin_marked
        elif not self._answer.begin.startswith(self._held):
            held, self._held, self._take = self._held, "", self._say
            return Parted(text=held)
        return Parted()

    def _begin_marked(self, character: str) -> Parted:
        if character.isspace():
            return Parted()
        self._take = self._say_marked
        return self._say_marked(character)

    def _say_marked(self, character: str) -> Parted:
        held = self._held + character
        begun = next(place for place in range(len(held) + 1) if self._may_end(held[place:]))
        self._held = held[begun:]
        return Parted(text=held[:begun])

    def _may_end(self, text: str) -> bool:
        """Whether this may be the beginning of the last mark, or this mark is all of it, but for white space."""
        text = text.strip()
        return self._answer.end.startswith(text)

    def _say(self, character: str) -> Parted:
        return Parted(text=character)
