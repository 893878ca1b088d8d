"""The terminal chat: a prompt, streamed answers, a few commands."""

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgert import EdgertError, Generation, LanguageModel, SessionError
from edgert.commands.loading import FOLD, thinking_asked
from edgert.sessions import sessions_folder
from edgert.terminal import AnswerWriter, read_standard_input, show
from edgert.watching import give_memory_back, map_large_blocks

from .chat_commands import Commands
from .chat_settings import Settings
from .chat_statistics import tokens_of
from .context_notice import ContextNotice
from .conversation import Conversation
from .line_input import Lines, open_lines

OpenModel = Callable[[Mapping[str, Any]], LanguageModel]
"""Opens the model as the command line asked for it, but with these changes: of "bundle", "memory" and "context"."""


class Chat:
    """A conversation with a model on a terminal. keep: the file that the conversation is kept in. think: as --think has
    it. last: the last answer."""

    def __init__(self, open_model: OpenModel, conversation: Conversation, settings: Settings,
                 keep: Path | None = None, think: str | None = None) -> None:
        self.conversation, self.settings, self.keep, self.think = conversation, settings, keep, think
        self.last: Generation | None = None
        self.notice = ContextNotice()
        self.commands = Commands(self)
        self._open_model = open_model
        self._changes: dict[str, Any] = {}
        self._model: LanguageModel | None = open_model(self._changes)
        if self.keep is not None and self.keep.exists():
            self._go_on(self.keep)

    @property
    def model(self) -> LanguageModel:
        """The model that answers. Raises EdgertError where the last one could not be opened again."""
        if self._model is None:
            raise EdgertError("no model is open; /budget SIZE or /load MODEL opens one")
        return self._model

    def close(self) -> None:
        """Close the model, when the conversation has been kept. Raises SessionError."""
        if self._model is not None:
            try:
                self._model.wait_for_session()
            finally:
                self._model.close()

    def run(self, lines: Lines) -> None:
        """Read questions and commands, and answer, until the user leaves."""
        while True:
            try:
                text, quoted = lines.read(self.commands.candidates)
                if not quoted and self.commands.is_exit(text):
                    return
                if quoted or not self.commands.call(text, lines.keys):
                    self._ask(text)
            except EOFError:
                return
            except KeyboardInterrupt:
                show("(Ctrl-D or /exit ends)")
            except EdgertError as error:
                show(error)

    def _ask(self, text: str) -> None:
        if text:
            self.conversation.take_back()
            self.conversation.ask(text)
            self.answer_if_it_fits()

    def answer(self) -> None:
        """Answer the last question. Ctrl-C ends the answer, and the text so far is kept. Raises EdgertError."""
        said: list[str] = []
        generation: Generation | None = None
        writer = AnswerWriter(self.think or FOLD, "/think writes them")
        try:
            generation = self.model.chat(self.conversation.messages, thinking=thinking_asked(self.think),
                                         **self.settings.values)
            for piece in generation:
                said.append(piece.text)
                writer.write(piece.text, piece.thinking)
            writer.end()
        except KeyboardInterrupt:
            if generation is not None:
                generation.close()
            writer.end()
            show(" (stopped)", end="")
        except EdgertError:
            self.conversation.take_back()
            raise
        show()
        self.last = generation or self.last
        self.conversation.answer("".join(said), generation.thinking if generation is not None else "")
        self._keep()

    def begin(self, conversation: Conversation) -> None:
        """Go on with another conversation."""
        self.conversation = conversation
        self.notice.begin()

    def open_again(self, **changes: Any) -> None:
        """Open the model with changes, as `OpenModel` has them; or, if that cannot be, as it was. The same bundle goes
        on where it is: what it has computed is kept meanwhile, in a file. Raises EdgertError and KeyboardInterrupt."""
        before = dict(self._changes)
        with ExitStack() as stack:
            computed = None
            if self._model is not None:
                self._model.wait_for_session()
                before["context"] = self._model.context
                computed = None if "bundle" in changes else self._computed(stack)
                self._model.close()
            self._model = self.last = None  # which refers to it: the next one's plan counts what this process holds
            give_memory_back()
            try:
                self._model = self._open_model({**self._changes, **changes})
            except (EdgertError, KeyboardInterrupt) as error:
                self._open_as_before(before, error)
                raise (error if isinstance(error, KeyboardInterrupt) else
                       EdgertError(f"{error}; so all goes on as it was")) from None
            finally:
                if computed is not None and self._model is not None:
                    with suppress(EdgertError):  # where it has no room it is computed again
                        self._model.open_session(computed)
        self._changes |= changes
        self.notice.begin()

    def _open_as_before(self, before: Mapping[str, Any], why: BaseException) -> None:
        try:
            self._model = self._open_model(before)
        except EdgertError as error:
            raise EdgertError(f"{why}; and it cannot be opened as it was either: {error}; the conversation is still "
                              "here: /budget SIZE or /load MODEL opens a model, /save FILE saves it") from None

    def _computed(self, stack: ExitStack) -> Path | None:
        """A file with all that the model has computed of the conversation; None where there is no room for one."""
        try:
            sessions_folder().mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(TemporaryDirectory(prefix=".again-", dir=sessions_folder()))
            self.model.save_session(path := Path(folder) / "conversation")
        except (OSError, EdgertError):
            return None
        return path

    def _go_on(self, path: Path) -> None:
        """Go on with a conversation that was kept. Raises EdgertError."""
        values = self.settings.values
        try:
            talk = self.model.open_session(path)
            kept = Conversation.from_json(talk)
            if self.conversation.system not in (None, kept.system):
                raise SessionError(f"{path.stem}: the session has another system message already; leave --system "
                                   "away, or take another name")
        except BaseException:
            self.model.close()
            raise
        self.conversation = kept
        if values["seed"] is None and isinstance(seed := talk.get("seed"), int):
            values["seed"] = seed

    def _keep(self) -> None:
        """Have the conversation written to its file, if it has one, while the user reads the answer."""
        if self.keep is not None:
            self.model.save_session(self.keep, {**self.conversation.to_json(), "seed": self.settings.values["seed"]},
                                    wait=False)

    def answer_if_it_fits(self) -> None:
        """Answer the last question. If the context has no room for it, keep it and tell the user what can be done."""
        needed = self.tokens()
        if needed > self.model.context and not self.model.endless:
            self._offer(needed)
            return
        if notice := self.notice.before_answer(self.model, needed, self.settings.values.get("max_tokens")):
            show(notice)
        self.answer()
        if notice := self.notice.after_answer(self.model, tokens_of(self.last) if self.last is not None else 0):
            show(notice)

    def tokens(self) -> int:
        """Number of tokens of the conversation. A question that cannot be asked is dropped, with an EdgertError."""
        try:
            return len(self.model.render(self.conversation.messages, thinking=thinking_asked(self.think)))
        except EdgertError:
            self.conversation.take_back()
            raise

    @property
    def most(self) -> int:
        """The largest context that the model takes."""
        return self.model.longest_context

    def _offer(self, needed: int) -> None:
        alone = Conversation(self.conversation.system, self.conversation.turns[-1:])
        droppable = len(self.model.render(alone.messages, thinking=thinking_asked(self.think))) <= self.model.context
        larger = min(max(2 * self.model.context, 2 * needed), self.most)
        if not droppable and needed > larger:
            self.conversation.take_back()
            raise EdgertError(f"the question has {needed} tokens with what came before, and no context of this model "
                              f"has room for more than {self.most}; shorten it")
        show(f"The conversation has {needed} tokens with this question, the context room for {self.model.context}. "
             "The question waits; choose:")
        if droppable:
            show("  /drop          leave out the oldest turns, and answer it")
        if needed <= larger:
            show(f"  {f'/context {larger}':14} take a larger context (this model: up to {self.most}), and answer it")
        show("  /reset         start anew")


def chat(open_model: OpenModel, system: str | None, settings: Settings, keep: Path | None = None,
         history: bool = True, think: str | None = None) -> None:
    """Chat on the terminal, or answer standard input where it is not one. keep: the file of a conversation that goes
    on, or begins to be kept. history: keep what is typed for later chats. think: as --think has it. Raises
    EdgertError."""
    if not sys.stdin.isatty():
        _answer_standard_input(open_model, system, settings, keep, think)
        return
    map_large_blocks()
    lines = open_lines(history)  # before the model is opened: its plan counts what the process takes
    session = Chat(open_model, Conversation(system=system), settings, keep, think)
    try:
        if session.model.plan.disk is None:
            show(f"memory: {session.model.plan.summary}")
        show("Ask something; /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends.")
        if turns := session.conversation.turns:
            show(f"(going on with {keep.stem if keep else ''}: {len(turns)} messages so far)")
        session.run(lines)
    finally:
        session.close()


def _answer_standard_input(open_model: OpenModel, system: str | None, settings: Settings, keep: Path | None,
                           think: str | None) -> None:
    question = read_standard_input().strip()
    if not question:
        raise EdgertError("standard input is empty; write the question there, or call this on a terminal")
    session = Chat(open_model, Conversation(system=system), settings, keep, think)
    try:
        session.conversation.ask(question)
        session.answer()
    finally:
        session.close()
