"""What is said of the context before it is full: how much of it is left, and what happens then."""

from edgert import LanguageModel

_ROOM = 256
"""Tokens. If an answer has less room than that, this is said before it begins."""
_CHOICES = "/drop leaves out the oldest turns, /context N makes it larger, /reset starts anew"
_FORGETS = {
    "window": "the model forgets the oldest tokens but the first",
    "heavy": "the model forgets what its attention returns to least",
    "mixed": "what is older than the latest tokens is kept at 3 bits an element, and the oldest of it is forgotten at "
             "last"}


class ContextNotice:
    """Decides what to say of the context, each thing once in a conversation."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def begin(self) -> None:
        """A new conversation, or the context has more room now."""
        self._said.clear()

    def before_answer(self, model: LanguageModel, needed: int, most: int | None) -> str | None:
        """needed: tokens of the question with all before it, which has room. most: tokens that the answer may have."""
        left = model.context - needed
        if model.endless or left >= min(_ROOM, model.context // 2) or (most is not None and most <= left):
            return None
        return (f"(the answer has room for {left} tokens, then the context of {model.context} is full and it ends; "
                f"Ctrl-C stops it; {_CHOICES})")

    def after_answer(self, model: LanguageModel, used: int) -> str | None:
        """used: tokens of the answer and all before it."""
        if used > model.context and not model.endless:
            return f"(the context is full, so the answer ends here: {_CHOICES})"
        if used > model.context:
            return self._once("over", f"(the conversation is longer than the context of {model.context} tokens: from "
                                      f"here on {_FORGETS[model.kv_policy]})")
        if used <= 3 * model.context // 4:
            return None
        then = (f"when it is full, {_FORGETS[model.kv_policy]}; /context N makes it larger" if model.endless
                else f"before it is full: {_CHOICES}")
        return self._once("soon", f"(context: {used} of {model.context} tokens used; {then})")

    def _once(self, name: str, text: str) -> str | None:
        if name in self._said:
            return None
        self._said.add(name)
        return text
