"""Chat templates: the Jinja text in a model's files that turns messages into one prompt.

The template comes from whoever published the model, so it is rendered in a sandbox (`template_sandbox`) that stops a
template which does more than chat templates need. The messages come from anyone. So the prompt records for each
character whether the template wrote it or a message contained it: only what the template wrote may name special tokens.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgert.errors import TemplateError

if TYPE_CHECKING:
    from jinja2 import Template

    from .template_sandbox import SandboxEnvironment
    from .template_text import Meter

LONGEST_TEMPLATE = 64 * 1024
"""In characters: compiling takes time and memory. The longest known templates have half of it."""
DEEPEST = 64
"""How deep lists and dictionaries may be nested in a message; JSON schemas of tools have about ten levels."""

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython", "observation", "model",
                   "environment", "tool_response", "documents", "context"})
"""Roles that templates know. Some make special tokens of them, such as <|user|>; other roles are plain text."""


class Prompt(NamedTuple):
    """A rendered prompt. given: one byte per character of `text`, 1 if it comes from a message or tool, 0 if not."""

    text: str
    given: bytes


class ChatTemplate:
    """A chat template, rendered as transformers' `apply_chat_template` does. Several threads may use one.

    It is compiled at the first `render`, since importing Jinja takes time.
    """

    def __init__(self, text: str | None, bos_token: str = "", eos_token: str = "") -> None:
        """Raises TemplateError if there is no template, or if it is extremely long."""
        if not text:
            raise TemplateError("The model has no chat template; give it plain text to complete instead of messages.")
        if len(text) > LONGEST_TEMPLATE:
            raise TemplateError(f"The model's chat template has {len(text)} characters, more than {LONGEST_TEMPLATE}; "
                                "use another model.")
        self.text = text
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._compiled: tuple[SandboxEnvironment, Template] | None = None
        self._lock = threading.Lock()  # the sandbox counts one rendering at a time

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True,
               tools: Sequence[Mapping[str, Any]] | None = None, values: Mapping[str, Any] | None = None) -> Prompt:
        """Render the prompt for `messages` (each with `role` and `content`), with BOS only if the template writes it.

        tools: JSON schemas of functions. values: further variables of the template. Raises TemplateError if the
        template is wrong, refuses the messages, or does more than a chat template may, and if messages, tools or values
        are not made of plain JSON values.
        """
        import jinja2

        from .template_sandbox import BUDGET, SECONDS, SandboxEnvironment
        from .template_text import OWN, Meter, RefusedError

        with self._lock:
            try:
                if self._compiled is None:
                    environment = SandboxEnvironment()
                    self._compiled = environment, environment.from_string(self.text)
                environment, template = self._compiled
                meter = Meter(BUDGET, SECONDS)
                turns = [_message(turn, f"messages[{index}]", meter) for index, turn in enumerate(messages)]
                variables = {**{name: _given(value, name, meter) for name, value in (values or {}).items()},
                             "messages": turns, "tools": _given(tools, "tools", meter),
                             "add_generation_prompt": add_generation_prompt,
                             **{name: meter.text(token, OWN) for name, token in self._tokens.items()}}
                return Prompt(*environment.render_within_limits(template, variables, meter))
            except TemplateError:
                raise
            except RefusedError as error:
                raise TemplateError(f"The model's chat template was stopped: {error}.") from error
            except jinja2.TemplateSyntaxError as error:
                raise TemplateError(f"The model's chat template is wrong in line {error.lineno}: "
                                    f"{_line(error)}.") from error
            except (jinja2.UndefinedError, jinja2.exceptions.SecurityError) as error:
                raise TemplateError(f"The model's chat template cannot be used: {_line(error)}.") from error
            except jinja2.TemplateError as error:  # its own raise_exception
                raise TemplateError(f"The model's chat template refuses the messages: {_line(error)}.") from error
            except Exception as error:  # the template is a program: it may raise anything
                raise TemplateError(f"The model's chat template failed: {type(error).__name__}: "
                                    f"{_line(error)}.") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")


def _message(turn: Any, name: str, meter: "Meter") -> Any:
    from .template_text import OWN

    copy = _given(turn, name, meter)
    role = copy.get("role") if isinstance(copy, dict) else None
    if isinstance(role, str) and role in ROLES:
        copy["role"] = meter.text(str.__str__(role), OWN)
    return copy


def _given(value: Any, name: str, meter: "Meter", depth: int = 0) -> Any:
    """A copy that consists of plain JSON values only: the template could call methods of other objects."""
    if depth > DEEPEST:
        raise TemplateError(f"{name[:60]}... holds lists or dictionaries {DEEPEST} deep; give simpler messages.")
    match value:
        case str():
            return meter.given(str.__str__(value))
        case None | bool():
            return value
        case int():
            return int.__int__(value)
        case float():
            return float.__float__(value)
        case Mapping():
            return {_given(key, name, meter, depth + 1): _given(item, f"{name}[{key!r}]", meter, depth + 1)
                    for key, item in value.items()}
        case list() | tuple():
            return [_given(item, f"{name}[{index}]", meter, depth + 1) for index, item in enumerate(value)]
    raise TemplateError(f"{name} is of type {type(value).__name__}; messages are made of strings, numbers, true, "
                        "false, null, lists and dictionaries.")
