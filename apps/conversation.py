"""A conversation: its messages, and saving them."""

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgert import EdgertError

Message = dict[str, str]


@dataclass
class Conversation:
    """Messages of a chat in order; the system message, if there is one, first."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    left_out: int = 0
    """How many of the oldest turns are not sent to the model any more."""

    @property
    def messages(self) -> list[Message]:
        """The messages to send to the model."""
        return self._after_system(self.turns[self.left_out:])

    def _after_system(self, turns: list[Message]) -> list[Message]:
        return [{"role": "system", "content": self.system}, *turns] if self.system is not None else turns

    @property
    def unanswered(self) -> bool:
        """Whether the last turn is a question that has no answer yet."""
        return bool(self.turns) and self.turns[-1]["role"] == "user"

    def ask(self, text: str) -> list[Message]:
        """Add a question; returns the messages to answer."""
        self.turns.append({"role": "user", "content": text})
        return self.messages

    def answer(self, text: str, thinking: str = "") -> None:
        """thinking: what was thought before it, which goes to the chat template as `reasoning_content`."""
        self.turns.append({"role": "assistant", "content": text,
                           **({"reasoning_content": thinking} if thinking else {})})

    def take_back(self) -> None:
        """Forget a question that got no answer."""
        if self.unanswered:
            self.turns.pop()

    def leave_out(self) -> bool:
        """Drop the oldest question and its answer; returns False if there is only the last one."""
        later = [index for index, turn in enumerate(self.turns) if index > self.left_out and turn["role"] == "user"]
        if later:
            self.left_out = later[0]
        return bool(later)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes it of again."""
        return {"messages": self._after_system(self.turns), "left_out": self.left_out}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Conversation":
        """A conversation that was kept. Raises EdgertError."""
        messages, left_out = values.get("messages"), values.get("left_out")
        if not (isinstance(messages, list) and isinstance(left_out, int) and all(
                isinstance(m, dict) and m.keys() - {"reasoning_content"} == {"role", "content"}
                and all(isinstance(v, str) for v in m.values()) for m in messages)):
            raise EdgertError("the session was not kept by a chat, or is damaged; remove it, and begin a new one")
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        return cls(system, messages[system is not None:], left_out)

    def save(self, path: str) -> None:
        """Write all messages as JSON. An existing file is replaced as a whole or not at all. Raises EdgertError."""
        text = json.dumps({"messages": self._after_system(self.turns)}, ensure_ascii=False, indent=1) + "\n"
        try:
            _replace(path, text.encode())
        except (OSError, ValueError, RuntimeError) as error:  # a home folder or a name that there cannot be
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise EdgertError(f"{path}: the chat cannot be saved: {why.lower()}; give another file") from None


def _replace(path: str, data: bytes) -> None:
    """Write a file beside `path` that then takes its place, with its mode and owner. Raises OSError and others."""
    target = Path(os.path.realpath(Path(path).expanduser()))  # a link stays one
    before = target.stat() if target.exists() else None
    if path.endswith(os.sep) or (before is not None and stat.S_ISDIR(before.st_mode)):
        raise ValueError("that is a folder")
    if before is not None and not stat.S_ISREG(before.st_mode):
        raise ValueError("that is a device or the like")
    if before is not None and not os.access(target, os.W_OK):
        raise PermissionError("it is write-protected")
    part = target.with_name(f".edgert-{secrets.token_hex(8)}")
    try:
        with part.open("xb") as file:
            if before is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
