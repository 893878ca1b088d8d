"""Function calls in an answer: read out of its text while it comes.

Models write calls as JSON objects of a name and arguments. Hermes, Qwen and their kin put each between <tool_call> and
</tool_call>; Llama 3 writes nothing else than the object. Either kind also answers with an
object alone, perhaps as a block of code; that counts as a call if it names a function that was offered.
"""

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto

BEGIN, END = "<tool_call>", "</tool_call>"
MARKS = (BEGIN, END)
_FENCES = ("```json", "```")
_BEHIND = (";", END, "}")
"""What stands behind a call and is not text. Qwen2.5-Coder's template shows the object with its outer braces doubled,
by mistake, and the model often writes it so."""
_NAME, _ARGUMENTS = "name", ("arguments", "parameters")


@dataclass(frozen=True)
class CallDelta:
    """What a piece of an answer adds to a call, as OpenAI streams it.

    index: the call's number in the answer. id, name: in its first delta only. arguments: further text of the JSON
    object of arguments.
    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass
class ToolCall:
    """A call of a function. arguments: JSON text, as the model wrote it; an object where the model made no mistake."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Read:
    """What became clear with a piece of text: text that is no call, and what it adds to calls."""

    text: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class CallReader:
    """Takes an answer's text in pieces, however it is cut. `calls` grows with it; what is no call is passed on.

    White space around calls belongs to them. A call that turns out not to be one before its name is known is text.
    """

    def __init__(self, names: Collection[str], *, most: int | None = None) -> None:
        """names: of the functions that were offered. most: how many calls are wanted; None for any number."""
        self.calls: list[ToolCall] = []
        self._names, self._most = names, most
        self._held = ""
        """Text of which it is not clear yet what it is: white space, a beginning of BEGIN, a call without a name."""
        self._object: _ObjectReader | None = None
        self._marked = False
        self._plain = False
        """Whether text came that is no call: then a bare object is not one either."""

    @property
    def enough(self) -> bool:
        """Whether as many calls as are wanted have come to their end."""
        return len(self.calls) == self._most and self._object is None

    def push(self, text: str) -> Read:
        """Takes text. What comes after the last call that is wanted is nothing."""
        read = Read()
        for character in text:
            if not self.enough:
                self._take(character, read)
        self._pass_on(read)
        return read

    def flush(self) -> Read:
        """The end: what was held back is text, unless it is white space beside calls."""
        read = Read()
        if self._object is None or not self._object.named:
            read.text += "" if self.calls and self._held.strip() in ("", "```") else self._held
        self._held = ""
        return read

    def _take(self, character: str, read: Read) -> None:
        if self._object is None:
            self._held += character
            self._look_for_call(read)
            return
        if not self._object.named:
            self._held += character
        self._object.take(character)
        if self._object.state is _State.BAD and not self._object.named:
            self._give_up(read)
        elif self._object.named and self._held:
            if self._marked or self._object.name in self._names:
                self._held = ""
                self._plain = False
                self.calls.append(ToolCall(f"call_{secrets.token_hex(12)}", self._object.name))
                read.calls.append(CallDelta(len(self.calls) - 1, id=self.calls[-1].id, name=self.calls[-1].name))
            else:
                self._give_up(read)
        if self._object is not None and self._object.state in (_State.DONE, _State.BAD):
            self._pass_on(read)
            if not self._object.named:
                self._give_up(read)
            self._object = None

    def _look_for_call(self, read: Read) -> None:
        held = self._held.lstrip()
        if held == BEGIN:
            self._object, self._marked = _ObjectReader(), True
        elif held.endswith("{") and held[:-1].rstrip() in ("", *_FENCES) and not self._plain:
            self._object, self._marked = _ObjectReader(), False
            self._object.take("{")
        elif self.calls and held in _BEHIND:
            self._held = ""
        elif not self._begins_something(held):
            # The last character may be the first of a mark, or white space before one.
            at = max(self._held.rfind("<", 1), 0)
            at = at if at and BEGIN.startswith(self._held[at:]) else len(self._held)
            start = len(self._held[:at].rstrip())
            read.text += self._held[:start]
            self._plain = True
            self._held = self._held[start:]

    def _begins_something(self, held: str) -> bool:
        """Whether text may be the beginning of a call, or of what stands behind one."""
        known = [BEGIN, *(() if self._plain else _FENCES), *(_BEHIND if self.calls else ())]
        return held.rstrip() in known or any(each.startswith(held) for each in known)

    def _give_up(self, read: Read) -> None:
        """What was held back is text after all."""
        read.text += self._held
        self._held, self._object, self._plain = "", None, True

    def _pass_on(self, read: Read) -> None:
        """The arguments as far as they are known."""
        if self._object is not None and self._object.named and (more := self._object.more_arguments()):
            self.calls[-1].arguments += more
            read.calls.append(CallDelta(len(self.calls) - 1, more))


class _State(Enum):
    START = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    AFTER = auto()
    DONE = auto()
    BAD = auto()


class _ObjectReader:
    """Reads one JSON object character by character; of its values `name`, and the text of the arguments."""

    def __init__(self) -> None:
        self.state = _State.START
        self.name = ""
        self.named = False
        self._key = ""
        self._text = ""
        """Of the key or value that is being read."""
        self._depth, self._quoted, self._escaped = 0, False, False
        self._given = 0
        """So many characters of the arguments have been given out."""
        self._arguments: str | None = None

    def more_arguments(self) -> str:
        """Text of the arguments that was not given out before."""
        text = self._arguments
        if text is None and self.state is _State.VALUE and self._key in _ARGUMENTS and not self._text.startswith('"'):
            text = self._text
        more = (text or "")[self._given:]
        self._given += len(more)
        return more

    def take(self, character: str) -> None:
        if self.state is _State.KEY and (self._quoted or character == '"'):
            self._text += character
            if self._string_ended(character):
                self._key, self._text = _string(self._text), ""
                self.state = _State.COLON
        elif self.state is _State.VALUE:
            self._take_value(character)
        elif not character.isspace():
            follows = {(_State.START, "{"): _State.KEY, (_State.KEY, "}"): _State.DONE,
                       (_State.COLON, ":"): _State.VALUE, (_State.AFTER, ","): _State.KEY,
                       (_State.AFTER, "}"): _State.DONE}
            if not self._key:
                follows[_State.KEY, "{"] = _State.KEY  # doubled: see _BEHIND
            self.state = follows.get((self.state, character), _State.BAD)

    def _take_value(self, character: str) -> None:
        if not self._text and character.isspace():
            return
        inside = self._quoted or self._depth > 0
        if not inside and self._text and (character in ",}" or character.isspace()):  # a number, or true, false, null
            self._value_ended()
            self.take(character)
            return
        self._text += character
        if self._quoted or character == '"':
            if self._string_ended(character) and not self._depth:
                self._value_ended()
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            if self._depth <= 0:
                self._value_ended()

    def _string_ended(self, character: str) -> bool:
        """Whether a string's last quote was taken."""
        if not self._quoted:
            self._quoted = True
            return False
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._quoted = False
            return True
        return False

    def _value_ended(self) -> None:
        if self._key == _NAME and self._text.startswith('"'):
            self.name, self.named = _string(self._text), True
        elif self._key in _ARGUMENTS:
            self._arguments = _string(self._text) if self._text.startswith('"') else self._text
        self._text, self._depth = "", 0
        self.state = _State.AFTER


def _string(text: str) -> str:
    """What a JSON string says."""
    try:
        value: str = json.loads(text, strict=False)
        return value
    except ValueError:
        return text[1:-1]
