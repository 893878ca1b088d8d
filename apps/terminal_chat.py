"""The terminal chat: a prompt, answers as they come, a few commands."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from edgert import EdgertError, Generation, Model
from edgert.terminal import read_standard_input

from .conversation import Conversation

HELP = """\
/system TEXT   set what the model is told first, and start anew; without TEXT show it
/reset         forget the conversation
/save FILE     write the conversation as JSON
/stats         speed and memory
/help          this
/exit          end (also Ctrl-D); Ctrl-C stops an answer\
"""


@dataclass
class Chat:
    """A conversation with a model on a terminal."""

    model: Model
    conversation: Conversation
    settings: dict[str, Any]
    """Passed on to `Model.chat`."""
    out: TextIO
    last: Generation | None = None

    def run(self) -> None:
        """Ask and answer until the user leaves."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives `input` line editing and history)
        while True:
            try:
                line = input(">>> ").strip()
            except EOFError:
                self.out.write("\n")
                return
            except KeyboardInterrupt:
                self.out.write("\n(Ctrl-D or /exit ends)\n")
                continue
            if line == "/exit":
                return
            try:
                if line.startswith("/"):
                    self._command(line)
                elif line:
                    self.answer(line)
            except EdgertError as error:
                self.conversation.take_back()
                self.out.write(f"{error}\n")

    def answer(self, text: str) -> None:
        """Answer one message. Ctrl-C ends the answer; what was said until then stays. Raises EdgertError."""
        generation = self.model.chat(self.conversation.ask(text), **self.settings)
        said: list[str] = []
        try:
            for piece in generation:
                said.append(piece.text)
                self.out.write(piece.text)
                self.out.flush()
            if piece.finish_reason == "length" and self.settings.get("max_tokens") is None:
                self.out.write("\n(the context is full: /reset starts anew)")
        except KeyboardInterrupt:
            generation.close()
            self.out.write(" (stopped)")
        self.out.write("\n")
        self.last = generation
        self.conversation.answer("".join(said))

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/system":
            if argument:
                self.conversation = Conversation(system=argument)
            self.out.write(f"system: {self.conversation.system or '(the model’s own)'}\n")
        elif name == "/reset":
            self.conversation.reset()
            self.out.write("(a new conversation)\n")
        elif name == "/save" and argument:
            self.conversation.save(argument)
            self.out.write(f"saved to {argument}\n")
        elif name == "/stats":
            self.out.write("\n".join(self._statistics()) + "\n")
        else:
            self.out.write(HELP + "\n")

    def _statistics(self) -> Iterator[str]:
        plan = self.model.plan
        if self.last is not None:
            s = self.last.statistics
            yield (f"last answer: {s.generated_tokens} tokens at {s.decode_tok_s:.1f} tokens/s; "
                   f"first after {s.first_token_s:.2f} s ({s.prompt_computed} of {s.prompt_tokens} prompt tokens were "
                   f"new, {s.prefill_tok_s:.0f} tokens/s)")
            used = s.prompt_tokens + s.generated_tokens
            yield f"context: {used} of {self.model.context} tokens used"
            if (disk := plan.disk) is not None:
                yield (f"flash: {s.flash_bytes_per_token / 1e6:.0f} MB read for each token at "
                       f"{s.flash_bandwidth / 1e9:.2f} GB/s (the disk was measured at {disk.bandwidth / 1e9:.2f}); "
                       f"{100 * s.flash_wait_share:.0f} % of the time was waiting for it; "
                       f"{100 * plan.pinned_share:.0f} % of the weights are in memory")
        yield "memory: " + ", ".join(f"{name} {size / (1 << 20):.0f} MiB" for name, size in plan.parts.items())
        yield f"threads: {self.model.threads}"


def chat(model: Model, system: str | None, settings: dict[str, Any]) -> None:
    """Chat on the terminal, or answer standard input where it is not one. Raises EdgertError."""
    session = Chat(model, Conversation(system=system), settings, sys.stdout)
    if sys.stdin.isatty():
        if model.plan.disk is None:
            sys.stdout.write(f"memory: {model.plan.summary}\n")
        sys.stdout.write("Ask something; /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends.\n")
        session.run()
        return
    text = read_standard_input().strip()
    if not text:
        raise EdgertError("standard input is empty; write the question there, or call this on a terminal")
    session.answer(text)
