"""Chat templates: the Jinja text in a model's files that turns messages into one prompt.

The text comes from whoever published the model, so it is rendered in a sandbox (`template_sandbox`) that ends whatever
does more than a chat template may.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgert.errors import TemplateError

if TYPE_CHECKING:
    from jinja2 import Template

    from edgert.template_sandbox import SandboxEnvironment

LONGEST_TEMPLATE = 64 * 1024
"""Characters; compiling takes time and memory too. The longest known templates have half of it."""


class ChatTemplate:
    """A chat template, rendered as transformers' `apply_chat_template` does. Several threads may use one.

    Nothing is compiled before the first `render`: Jinja takes time to import.
    """

    def __init__(self, text: str | None, bos_token: str = "", eos_token: str = "") -> None:
        """Raises TemplateError if there is no template, or one of absurd length."""
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
               tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The prompt for `messages` (each with `role` and `content`), without BOS unless the template writes it.

        `tools` are JSON schemas of functions. Raises TemplateError if the template is wrong, refuses the messages, or
        does more than a chat template may, and if messages or tools are not made of plain JSON values.
        """
        variables = {"messages": _plain(list(messages), "messages"),
                     "tools": None if tools is None else _plain(list(tools), "tools"),
                     "add_generation_prompt": add_generation_prompt, **self._tokens}
        import jinja2

        from edgert.template_sandbox import RefusedError, SandboxEnvironment
        with self._lock:
            try:
                if self._compiled is None:
                    environment = SandboxEnvironment()
                    self._compiled = environment, environment.from_string(self.text)
                environment, template = self._compiled
                return environment.render_within_limits(template, variables)
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


def _plain(value: Any, name: str) -> Any:
    """A copy of plain JSON values alone: methods of other objects would be in the template's reach."""
    match value:
        case str():
            return str.__str__(value)
        case None | bool():
            return value
        case int():
            return int.__int__(value)
        case float():
            return float.__float__(value)
        case Mapping():
            return {_plain(key, name): _plain(item, f"{name}[{key!r}]") for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    raise TemplateError(f"{name} is of type {type(value).__name__}; messages are made of strings, numbers, true, "
                        "false, null, lists and dictionaries.")
