"""The commands of the terminal chat: what each does, and what its argument may be completed to."""

import difflib
import os
import shutil
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgert import EdgertError, parse_size
from edgert.commands.loading import FOLD, THINK
from edgert.commands.price import tell_price
from edgert.download import bundles_here, catalogue, find_bundle
from edgert.terminal import show

from .chat_statistics import statistics_lines
from .conversation import Conversation
from .line_input import Candidate, Completion

if TYPE_CHECKING:
    from .terminal_chat import Chat

_EXITS = ("/exit", "/quit", "/bye")


def _nothing(_: str) -> Completion:
    return Completion("", [])


@dataclass(frozen=True)
class _Command:
    """takes: its argument in words. complete: is given the argument so far."""

    run: Callable[[str], None]
    takes: str
    about: str
    complete: Callable[[str], Completion] = _nothing


class Commands:
    """The commands of a chat."""

    def __init__(self, chat: "Chat") -> None:
        self._chat = chat
        self._commands = {
            "/system": _Command(self._system, "TEXT", "set the system message and start a new conversation; without "
                                                      "TEXT show it"),
            "/reset": _Command(self._reset, "", "start a new conversation"),
            "/drop": _Command(self._drop, "", "drop the oldest turns, when the context is full"),
            "/set": _Command(self._set, "NAME VALUE", "set temperature, max_tokens and the like; alone show them, "
                                                      "VALUE default takes it back", self._complete_set),
            "/think": _Command(self._think, "|".join(THINK), "have the model think before it answers, and show that, "
                               "fold or hide it; or not think; alone write what it thought last", self._complete_think),
            "/load": _Command(self._load, "MODEL", "open another model, and start a new conversation with the same "
                                                   "settings", self._complete_load),
            "/budget": _Command(self._budget, "SIZE", "load the model again with this memory budget, like 500M, and go "
                                                      "on; without SIZE show it"),
            "/context": _Command(self._context, "N", "set the context to N tokens; without N show it"),
            "/save": _Command(self._save, "FILE", "save the conversation as JSON",
                              lambda argument: Completion(argument, [], files="")),
            "/stats": _Command(self._statistics, "", "show speed and memory"),
            "/help": _Command(lambda _: None, "", "show this help"),
            "/exit": _Command(lambda _: None, "", "leave (also Ctrl-D); Ctrl-C stops an answer"),
        }

    def is_exit(self, text: str) -> bool:
        """Whether a line means that the user leaves."""
        return text.split(maxsplit=1)[:1] in [[name] for name in _EXITS]

    def call(self, text: str, keys: Mapping[str, str]) -> bool:
        """Do what a line says, if it is a command; returns whether it is. keys: what is in the help besides. Raises
        EdgertError."""
        name, argument = [*text.split(maxsplit=1), "", ""][:2]
        if name == "/help":
            self._help(keys)
        elif name in self._commands:
            self._commands[name].run(argument)
        elif text.startswith("/") and "\n" not in text:
            self._unknown(name)
        else:
            return False
        return True

    def candidates(self, text: str) -> Completion:
        """What a line may be completed to, of which this is what stands before the cursor."""
        name, space, argument = text.partition(" ")
        if "\n" in text or not text.startswith("/"):
            return Completion("", [])
        if space:
            return self._commands[name].complete(argument.lstrip()) if name in self._commands else Completion("", [])
        return Completion(text, [Candidate(known, command.about) for known, command in self._commands.items()
                                 if known.startswith(text)])

    def _help(self, keys: Mapping[str, str]) -> None:
        width = min(shutil.get_terminal_size().columns, 120)
        commands = [(f"{name} {command.takes}", command.about) for name, command in self._commands.items()]
        for name, about in [*commands, *keys.items()]:
            show(textwrap.fill(about, width, initial_indent=f"{name:16} ", subsequent_indent=17 * " "))

    def _unknown(self, name: str) -> None:
        near = difflib.get_close_matches(name, [*self._commands, *_EXITS], 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise EdgertError(f'there is no command {name}{meant}; /help lists them, and a question that begins with a '
                          'slash goes between """ and """')

    def _system(self, argument: str) -> None:
        if argument:
            self._chat.begin(Conversation(system=argument))
        show(f"system: {self._chat.conversation.system or '(the model’s own)'}")

    def _reset(self, _: str) -> None:
        self._chat.begin(Conversation(self._chat.conversation.system))
        show("(a new conversation)")

    def _drop(self, _: str) -> None:
        """Drop turns until the rest takes half of the context, so that there is room for more than one answer."""
        chat = self._chat
        before = chat.conversation.left_out
        while chat.tokens() > chat.model.context // 2 and chat.conversation.leave_out():
            pass
        number = chat.conversation.left_out - before
        show(f"({number} of {len(chat.conversation.turns)} messages are left out; /save still writes them)" if number
             else "(there is nothing to leave out: the rest takes less than half of the context, or is one turn)")
        chat.notice.begin()
        self._answer_what_waits()

    def _answer_what_waits(self) -> None:
        if self._chat.conversation.unanswered:
            self._chat.answer_if_it_fits()

    def _set(self, argument: str) -> None:
        settings, model = self._chat.settings, self._chat.model
        name, value = [*argument.split(maxsplit=1), "", ""][:2]
        if not name:
            show("\n".join(settings.lines()))
        elif not value:
            show(settings.show(name))
        else:  # an answer that nobody asks for: it checks the settings, and computes nothing
            show(settings.change(name, value.strip(), lambda values: model.generate([0], **values)))
            if "loss" in name:
                tell_price(model, settings.values["max_loss"])

    def _complete_set(self, argument: str) -> Completion:
        name, space, value = argument.partition(" ")
        if space:
            value = value.lstrip()
            return Completion(value, [Candidate("default", f"as {name} was at first")] if "default".startswith(value)
                              else [])
        return Completion(name, [Candidate(known, about) for known, about in self._chat.settings.about.items()
                                 if known.startswith(name)])

    def _think(self, argument: str) -> None:
        chat = self._chat
        if argument and argument not in THINK:
            raise EdgertError(f"/think takes {', '.join(THINK[:-1])} or {THINK[-1]}, not {argument[:40]}")
        if argument:
            if argument != THINK[-1] and not chat.model.thinks:
                raise EdgertError("this model does not think before it answers")
            chat.think = argument
        elif chat.last is not None and chat.last.thinking:
            show(chat.last.thinking)
        show(f"(think: {chat.think or f'as the model does, {FOLD}ed'})")

    def _complete_think(self, argument: str) -> Completion:
        return Completion(argument, [Candidate(known) for known in THINK if known.startswith(argument)])

    def _load(self, argument: str) -> None:
        chat = self._chat
        if not argument:
            here = ", ".join(path.stem for path in bundles_here()) or "none, edgert pull and edgert convert make some"
            raise EdgertError(f"/load needs a bundle, by its path or its name in the models' folder; there: {here}")
        path = find_bundle(os.path.expanduser(argument))  # noqa: PTH111 (which raises nothing, whatever it is given)
        if not os.path.isfile(path):  # noqa: PTH113 (the same)
            known = f"; it is in the catalogue: edgert pull {argument}" if argument in catalogue() else ""
            raise EdgertError(f"{argument}: there is no such file, nor a bundle of that name{known}")
        chat.open_again(bundle=str(path))
        chat.begin(Conversation(chat.conversation.system))
        kept = f"; the session {chat.keep.stem} stays as it is, and what follows is not kept" if chat.keep else ""
        chat.keep = None
        show(f"({path.stem}: a new conversation, with the same settings{kept})")

    def _complete_load(self, argument: str) -> Completion:
        return Completion(argument, [Candidate(path.stem) for path in bundles_here() if path.stem.startswith(argument)],
                          files=".edge")

    def _budget(self, argument: str) -> None:
        chat = self._chat
        if argument:
            parse_size(argument)
            chat.open_again(memory=argument)
        smallest, whole = (f"{size / (1 << 20):.0f} MiB" for size in chat.model.budgets())
        show(f"(memory: {chat.model.plan.summary}; the smallest budget is {smallest}, and from {whole} on nothing is "
             "read from the disk)")
        if argument:
            self._answer_what_waits()

    def _context(self, argument: str) -> None:
        """Open the model again with another context length."""
        chat = self._chat
        most = chat.most
        if argument:
            if not (argument.isascii() and argument.isdecimal() and 1 <= int(argument) <= most):
                raise EdgertError(f"{argument}: give a number of tokens from 1 to {most}, which this model takes")
            chat.open_again(context=int(argument))
        show(f"(the context has room for {chat.model.context} tokens; this model takes up to {most})")
        if argument:
            self._answer_what_waits()

    def _save(self, argument: str) -> None:
        if not argument:
            raise EdgertError("/save needs the name of a file, like /save chat.json")
        self._chat.conversation.save(argument)
        show(f"saved to {argument}")

    def _statistics(self, _: str) -> None:
        for line in statistics_lines(self._chat.model, self._chat.last):
            show(line)
