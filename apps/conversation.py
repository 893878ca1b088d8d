"""A conversation: its messages, and saving them."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from edgert import EdgertError

Message = dict[str, str]


@dataclass
class Conversation:
    """Messages of a chat in order; the system message, if there is one, first."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        first = [{"role": "system", "content": self.system}] if self.system is not None else []
        return first + self.turns

    def ask(self, text: str) -> list[Message]:
        """Add a question; the messages to answer."""
        self.turns.append({"role": "user", "content": text})
        return self.messages

    def answer(self, text: str) -> None:
        self.turns.append({"role": "assistant", "content": text})

    def take_back(self) -> None:
        """Forget a question that got no answer."""
        if self.turns and self.turns[-1]["role"] == "user":
            self.turns.pop()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.turns.clear()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the messages as JSON; a file that is there is replaced whole or not at all. Raises EdgertError."""
        target = Path(path).expanduser()
        part = target.with_name(target.name + ".part")
        try:
            part.write_text(json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1) + "\n",
                            encoding="utf-8")
            part.replace(target)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise EdgertError(f"{target}: the chat cannot be saved: {(why or str(error)).lower()}") from None
