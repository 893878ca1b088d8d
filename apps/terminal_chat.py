"""The terminal chat: a prompt, streamed answers, a few commands."""

import difflib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgert import EdgertError, Generation, LanguageModel, SessionError
from edgert.terminal import read_standard_input, show, write_answer

from .conversation import Conversation
from .line_input import edit_lines, read_typed

HELP = '''\
/system TEXT   set the system message and start a new conversation; without TEXT show it
/reset         start a new conversation
/drop          drop the oldest turns, when the context is full
/context N     set the context to N tokens; without N show it
/save FILE     save the conversation as JSON
/stats         show speed and memory
/help          show this help
/exit          leave (also Ctrl-D); Ctrl-C stops an answer
"""            begins and ends a question of several lines; most terminals paste several lines as one question anyway'''
_EXITS = ("/exit", "/quit", "/bye")

OpenModel = Callable[[int | None], LanguageModel]
"""Opens the model with a context of this many tokens; None for what the command line asked for."""


@dataclass
class Chat:
    """A conversation with a model on a terminal."""

    open_model: OpenModel
    conversation: Conversation
    settings: dict[str, Any]
    """Passed on to `Model.generate`."""
    keep: Path | None = None
    """The file that the conversation is kept in."""
    last: Generation | None = None

    def __post_init__(self) -> None:
        self.model = self.open_model(None)
        if self.keep is not None and self.keep.exists():
            self._go_on(self.keep)
        self._warned = False  # that the context is filling up
        self._commands: dict[str, Callable[[str], None]] = {
            "/system": self._system, "/reset": self._reset, "/drop": self._drop, "/context": self._context,
            "/save": self._save, "/stats": self._statistics, "/help": self._help}

    def run(self) -> None:
        """Read questions and commands, and answer, until the user leaves."""
        edit_lines()
        while True:
            try:
                text, quoted = read_typed()
                name, argument = [*text.split(maxsplit=1), "", ""][:2]
                if not quoted and name in self._commands:
                    self._commands[name](argument)
                elif not quoted and name in _EXITS:
                    return
                elif not quoted and text.startswith("/") and "\n" not in text:
                    self._unknown(name)
                elif text:
                    self.conversation.take_back()
                    self.conversation.ask(text)
                    self._answer_if_it_fits()
            except EOFError:
                show()
                return
            except KeyboardInterrupt:
                show("\n(Ctrl-D or /exit ends)")
            except EdgertError as error:
                show(error)

    def answer(self) -> None:
        """Answer the last question. Ctrl-C ends the answer, and the text so far is kept. Raises EdgertError."""
        said: list[str] = []
        generation: Generation | None = None
        try:
            generation = self.model.chat(self.conversation.messages, **self.settings)
            for piece in generation:
                said.append(piece.text)
                write_answer(piece.text)
        except KeyboardInterrupt:
            if generation is not None:
                generation.close()
            show(" (stopped)", end="")
        except EdgertError:
            self.conversation.take_back()
            raise
        show()
        self.last = generation or self.last
        self.conversation.answer("".join(said))
        self._keep()

    def _go_on(self, path: Path) -> None:
        """Go on with a conversation that was kept. Raises EdgertError."""
        try:
            talk = self.model.open_session(path)
            kept = Conversation.from_json(talk)
            if self.conversation.system not in (None, kept.system):
                raise SessionError(f"{path.stem}: the session has another system message already; leave --system "
                                   "away, or take another name")
        except BaseException:
            self.model.close()
            raise
        self.conversation, self.settings["seed"] = kept, talk.get("seed")
        if not isinstance(self.settings["seed"], int | None):
            self.settings["seed"] = None

    def _keep(self) -> None:
        """Have the conversation written to its file, if it has one, while the user reads the answer."""
        if self.keep is not None:
            self.model.save_session(self.keep, {**self.conversation.to_json(), "seed": self.settings.get("seed")},
                                    wait=False)

    def _answer_if_it_fits(self) -> None:
        """Answer the last question. If the context has no room for it, keep it and tell the user what can be done."""
        needed = self._tokens()
        if needed > self.model.context and not self.model.endless:
            self._offer(needed)
            return
        self.answer()
        if self.model.endless:
            self._say_that_it_forgets()
            return
        used = self._used()
        if used > self.model.context:
            show("(the context is full, so the answer ends here: "
                 "/drop leaves out the oldest turns, /context N makes it larger, /reset starts anew)")
        elif used > 3 * self.model.context // 4 and not self._warned:
            show(f"(context: {used} of {self.model.context} tokens used; before it is full: "
                 "/drop leaves out the oldest turns, /context N makes it larger, /reset starts anew)")
            self._warned = True

    def _say_that_it_forgets(self) -> None:
        if self._used() > self.model.context and not self._warned:
            show(f"(the conversation is longer than the context of {self.model.context} tokens: from here on the model "
                 "forgets a part of what came before)")
            self._warned = True

    def _tokens(self) -> int:
        """Number of tokens of the conversation. A question that cannot be asked is dropped, with an EdgertError."""
        try:
            return len(self.model.render(self.conversation.messages))
        except EdgertError:
            self.conversation.take_back()
            raise

    def _used(self) -> int:
        """Number of tokens of the last answer and everything before it."""
        return 0 if self.last is None else len(self.last.prompt_ids) + len(self.last.token_ids)

    def _most(self) -> int:
        """The largest context that the model takes."""
        return self.model.longest_context

    def _offer(self, needed: int) -> None:
        alone = Conversation(self.conversation.system, self.conversation.turns[-1:])
        droppable = len(self.model.render(alone.messages)) <= self.model.context
        larger = min(max(2 * self.model.context, 2 * needed), self._most())
        if not droppable and needed > larger:
            self.conversation.take_back()
            raise EdgertError(f"the question has {needed} tokens with what came before, and no context of this model "
                              f"has room for more than {self._most()}; shorten it")
        show(f"The conversation has {needed} tokens with this question, the context room for {self.model.context}. "
             "The question waits; choose:")
        if droppable:
            show("  /drop          leave out the oldest turns, and answer it")
        if needed <= larger:
            show(f"  {f'/context {larger}':14} take a larger context (this model: up to {self._most()}), and answer it")
        show("  /reset         start anew")

    def _system(self, argument: str) -> None:
        if argument:
            self.conversation = Conversation(system=argument)
            self._warned = False
        show(f"system: {self.conversation.system or '(the model’s own)'}")

    def _reset(self, _: str) -> None:
        self.conversation = Conversation(self.conversation.system)
        self._warned = False
        show("(a new conversation)")

    def _drop(self, _: str) -> None:
        """Drop turns until the rest takes half of the context, so that there is room for more than one answer."""
        before = self.conversation.left_out
        while self._tokens() > self.model.context // 2 and self.conversation.leave_out():
            pass
        number = self.conversation.left_out - before
        show(f"({number} of {len(self.conversation.turns)} messages are left out; /save still writes them)" if number
             else "(there is nothing to leave out: the rest takes less than half of the context, or is one turn)")
        self._warned = False
        if self.conversation.unanswered:
            self._answer_if_it_fits()

    def _context(self, argument: str) -> None:
        """Open the model again with another context length."""
        now, most = self.model.context, self._most()
        if argument:
            if not (argument.isascii() and argument.isdecimal() and 1 <= int(argument) <= most):
                raise EdgertError(f"{argument}: give a number of tokens from 1 to {most}, which this model takes")
            self.model.close()
            try:
                self.model = self.open_model(int(argument))
            except (EdgertError, KeyboardInterrupt):
                self.model = self.open_model(now)
                raise
            self._warned = False
        show(f"(the context has room for {self.model.context} tokens; this model takes up to {most})")
        if argument and self.conversation.unanswered:
            self._answer_if_it_fits()

    def _save(self, argument: str) -> None:
        if not argument:
            raise EdgertError("/save needs the name of a file, like /save chat.json")
        self.conversation.save(argument)
        show(f"saved to {argument}")

    def _statistics(self, _: str) -> None:
        show("\n".join(self._statistics_lines()))

    def _help(self, _: str) -> None:
        show(HELP)

    def _unknown(self, name: str) -> None:
        near = difflib.get_close_matches(name, [*self._commands, *_EXITS], 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise EdgertError(f'there is no command {name}{meant}; /help lists them, and a question that begins with a '
                          'slash goes between """ and """')

    def _statistics_lines(self) -> Iterator[str]:
        plan = self.model.plan
        if self.last is not None:
            s = self.last.statistics
            yield (f"last answer: {s.generated_tokens} tokens at {s.decode_tok_s:.1f} tokens/s; "
                   f"first after {s.first_token_s:.2f} s ({s.prompt_computed} of {s.prompt_tokens} prompt tokens were "
                   f"new, {s.prefill_tok_s:.0f} tokens/s)")
            if s.guessed:
                yield (f"guesses: {s.right} of {s.guessed} were right, {100 * s.agreement:.0f} % of those with only "
                       f"right ones before them; {s.tokens_per_pass:.1f} tokens came of each pass over the weights; "
                       f"guessing took {s.draft_s:.1f} s, checking {s.verify_s:.1f} s")
            yield f"context: {self._used()} of {self.model.context} tokens used"
            if (disk := plan.disk) is not None:
                yield (f"flash: {s.flash_bytes_per_token / 1e6:.0f} MB read for each token at "
                       f"{s.flash_bandwidth / 1e9:.2f} GB/s (the disk was measured at {disk.bandwidth / 1e9:.2f}); "
                       f"{100 * s.flash_wait_share:.0f} % of the time was waiting for it; "
                       f"{100 * plan.pinned_share:.0f} % of the weights are in memory")
        if count := self.model.read_again:
            yield f"disk: {count} read{'s' * (count > 1)} failed or came damaged, and went well the second time"
        yield "memory: " + ", ".join(f"{name} {size / (1 << 20):.0f} MiB" for name, size in plan.parts.items())
        yield f"threads: {self.model.threads}"


def chat(open_model: OpenModel, system: str | None, settings: dict[str, Any], keep: Path | None = None) -> None:
    """Chat on the terminal, or answer standard input where it is not one. keep: the file of a conversation that goes
    on, or begins to be kept. Raises EdgertError."""
    question = None if sys.stdin.isatty() else read_standard_input().strip()
    if question == "":
        raise EdgertError("standard input is empty; write the question there, or call this on a terminal")
    session = Chat(open_model, Conversation(system=system), settings, keep)
    try:
        if question is not None:
            session.conversation.ask(question)
            session.answer()
            session.model.wait_for_session()
            return
        if session.model.plan.disk is None:
            show(f"memory: {session.model.plan.summary}")
        show("Ask something; /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends.")
        if turns := session.conversation.turns:
            show(f"(going on with {keep.stem if keep else ''}: {len(turns)} messages so far)")
        session.run()
        session.model.wait_for_session()
    finally:
        session.model.close()
