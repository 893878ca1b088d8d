"""The line editor of the terminal chat: history, several lines, completion, and an editor of the user's choice.

The keys are those of GNU readline, from prompt_toolkit; here are the few that a chat has besides. It is imported only
on a terminal, and before a model is opened: its 9 MiB count toward the budget.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, PathCompleter
from prompt_toolkit.completion import Completion as Completed
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout.processors import TabsProcessor

from edgert import EdgertError
from edgert.terminal import show

from .line_history import open_history
from .line_input import MORE, PROMPT, Complete, Typed, begins_quote, is_quoted, read_text, typed
from .text_editor import edit_text


class LineEditor:
    """Lines of a terminal that can move its cursor. history: keep what is typed, for later chats."""

    keys: Mapping[str, str] = {
        "Tab": "completes commands, settings, models and files",
        "↑ ↓ Ctrl-R": "go through what was typed, and search it",
        "Alt-Enter": 'begins a new line, and so does Enter after """, up to the next """; pasted lines stay together',
        "Ctrl-G": "opens the editor that $VISUAL or $EDITOR names, with what is typed so far"}

    def __init__(self, history: bool) -> None:
        self._quoting = False  # Enter begins a new line, up to the closing quotes
        self._session: PromptSession[str] = PromptSession(
            PROMPT, history=open_history(history), key_bindings=self._bindings(), enable_suspend=True,
            multiline=Condition(lambda: "\n" in self._session.default_buffer.text),
            prompt_continuation=lambda width, number, wrapped: "" if wrapped else MORE,
            input_processors=[TabsProcessor(char1=" ", char2=" ")], complete_while_typing=False)

    def read(self, complete: Complete) -> Typed:
        """Read the next line or lines. Raises EOFError, KeyboardInterrupt, and EdgertError for bytes that are not text.
        """
        self._quoting = False
        return typed(read_text(lambda: self._session.prompt(completer=_Completer(complete))))

    def _bindings(self) -> KeyBindings:
        keys = KeyBindings()
        typing = has_focus(DEFAULT_BUFFER)

        @keys.add("enter", filter=typing)
        def _send(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if (state := buffer.complete_state) is not None and state.current_completion is not None:
                buffer.complete_state = None  # take it, and go on typing
                return
            self._quoting = begins_quote(buffer.text.strip()) or (self._quoting and not is_quoted(buffer.text))
            if self._quoting:
                buffer.newline(copy_margin=False)
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=typing)
        def _begin_line(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        @keys.add("c-g", filter=typing)
        async def _edit(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            edited: list[str] = []

            def edit() -> None:
                try:
                    edited.append(edit_text(buffer.text))
                except EdgertError as error:
                    show(error)

            await run_in_terminal(edit, in_executor=True)
            if edited:
                buffer.document = Document(edited[0])

        return keys


class _Completer(Completer):
    """Completes what stands before the cursor, as a chat says it."""

    def __init__(self, complete: Complete) -> None:
        self._complete = complete

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completed]:
        begun, candidates, files = self._complete(document.text_before_cursor)
        for candidate in candidates:
            yield Completed(candidate.text, start_position=-len(begun), display_meta=candidate.about)
        if files is not None:
            paths = PathCompleter(expanduser=True, file_filter=lambda name: name.endswith(files) or Path(name).is_dir())
            yield from paths.get_completions(Document(begun), event)
