"""A model that llama.cpp runs, in a process of its own, with the interface of edgert's."""

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import xxhash

from edgert.answering import LanguageModel
from edgert.engine.retention import STOP
from edgert.errors import ModelError, SessionError
from edgert.generation.generation import Computing, Generation
from edgert.generation.grammar import Grammars, grammar_bytes
from edgert.generation.scoring import Scores, Scoring
from edgert.generation.steps import Choosing, Step
from edgert.generation.turns import Turn, Turns, turn_lost
from edgert.memory.budget import process_bytes
from edgert.opening import DEFAULT_CONTEXT
from edgert.process import default_threads
from edgert.sizes import parse_size, size_text

from .child import Child
from .connection import Connection
from .messages import Open
from .tokenizer import LlamaTokenizer

TRANSCRIPT = """\
{% for message in messages %}
{% if message.role == 'user' %}User: {% elif message.role == 'assistant' %}Assistant: {% endif %}
{{ message.content }}
{% endfor %}
Assistant:"""
"""How a conversation is written for a model that has no chat template: as it stands in books."""
_NEXT_TURN = ("\nUser:", "\nAssistant:")
_ROWS = 32
"""Positions whose logits are in memory at once while a text is scored."""
_DIGESTED = 1 << 20


@dataclass(frozen=True)
class LlamaMemory:
    """How much there is; a `MemoryUse`. limit: of both processes, in bytes, which the kernel keeps; None for none."""

    limit: int | None
    parts: dict[str, int]
    disk = None
    pinned_share = 1.0

    @property
    def budget(self) -> int:
        return int(psutil.virtual_memory().total) if self.limit is None else self.limit

    @property
    def summary(self) -> str:
        if self.limit is None:
            return f"{size_text(sum(self.parts.values()))} now, most of it llama.cpp's, which edgert does not bound"
        return f"{size_text(self.limit)}, within which the kernel keeps llama.cpp"


class LlamaModel(LanguageModel):
    """A GGUF file that llama.cpp runs. Tokens are chosen, texts rendered and answers read by edgert, as of any model.

    memory: bytes, or a text like "600M", that this process and llama.cpp's may take; the kernel keeps llama.cpp's
    within what this one leaves, and where it cannot, this is refused. context, threads, batch, kv_type, structured: as
    of `edgert.load`. Raises ModelError: without llama-cpp-python, for a file that llama.cpp cannot load, and so on.

    Where llama.cpp's process ends, whatever ends it, the answer that is under way ends with a ModelError, and the next
    one gets a new process.
    """

    parallel = 1
    keeps_sessions = False
    endless = False
    kv_policy = STOP
    read_again = 0
    read_bytes = 0

    def __init__(self, path: str | os.PathLike[str], *, memory: int | str | None = None, threads: int | None = None,
                 context: int | None = None, batch: int = 256, kv_type: str | None = None,
                 structured: bool = False) -> None:
        self.path = Path(path)
        if find_spec("llama_cpp") is None:
            raise ModelError(f"{self.path}: only llama.cpp runs this model, through llama-cpp-python, which is not "
                             "installed: pip install 'edgert[llama]'")
        self.threads = default_threads() if threads is None else threads
        self._limit = parse_size(memory) if isinstance(memory, str) else memory
        opening = Open(str(self.path.absolute()), self.threads, context, DEFAULT_CONTEXT, batch, kv_type or "f16")
        self._batch, self._structured = batch, structured
        self._connection = Connection(opening, self._limit, structured=structured)
        self._finalizer = weakref.finalize(self, self._connection.close)
        self._turns = Turns()
        self._grammars: Grammars | None = None
        self._grammars_lock = threading.Lock()
        self.tokenizer: LlamaTokenizer = LlamaTokenizer(self._connection)
        self.plan: LlamaMemory = LlamaMemory(self._limit, {
            "edgert's process": process_bytes(), "llama.cpp's process": self._connection.memory})

    @property
    def context(self) -> int:
        return self._connection.opened.context

    @property
    def longest_context(self) -> int:
        return self._connection.opened.longest_context

    @property
    def vocab_size(self) -> int:
        return self._connection.opened.vocab_size

    @cached_property
    def digest(self) -> str:
        """Of the file's beginning, where its header is, and its length."""
        with self.path.open("rb") as file:
            digest = xxhash.xxh3_64(file.read(_DIGESTED))
        digest.update(self.path.stat().st_size.to_bytes(8, "little"))
        return digest.hexdigest()

    @property
    def chat_template(self) -> str | None:
        return self._connection.opened.template or TRANSCRIPT

    @property
    def beside(self) -> int:
        return self._connection.memory

    def budgets(self) -> tuple[int, int]:
        needed = sum(self.plan.parts.values())
        return needed, needed

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Generation:
        """As `LanguageModel.chat`. Without a chat template, an answer ends where the next turn begins."""
        if self._connection.opened.template is None:
            stop = settings.get("stop") or ()
            settings["stop"] = [*([stop] if isinstance(stop, str) else stop), *_NEXT_TURN]
        return super().chat(messages, **settings)

    def _check_open(self) -> None:
        self._connection.check()

    def _computing(self, ids: Sequence[int], wait: bool) -> Computing:
        turn, used = Turn(), list[Child]()
        held = weakref.ref(turn)

        def check() -> None:
            if not self._turns.holds(turn):
                raise turn_lost()

        def begin() -> int:
            self._turns.take(turn, wait=wait)
            return self._connection.run(work_begin)

        def work_begin(child: Child) -> int:
            """How many prompt tokens are known already; the last one is always computed, for its logits."""
            check()
            used[:] = [child]
            return _recall(child, ids[:-1])

        def step(new: Sequence[int], choosing: Choosing, _most: int) -> Step:
            for start in range(0, len(new), self._batch):
                part, last = list(new[start:start + self._batch]), start + self._batch >= len(new)

                def work(child: Child, part: list[int] = part, last: bool = last) -> Any:
                    check()
                    return child.compute(part, int(last))

                logits = self._connection.run(work, used[0])
            return Step([choosing.exact(logits[-1], ())])

        def computed() -> int:
            holds = (kept := held()) is not None and self._turns.holds(kept)
            return len(used[0].held) if holds and used else 0

        return Computing(begin, step, lambda: self._turns.give_back(turn), lambda: (0, 0.0), computed)

    def _loaded_grammars(self) -> Grammars:
        with self._grammars_lock:
            if self._grammars is None:
                if self._limit is not None and not self._structured:
                    raise ModelError(f"answers that follow a grammar take {size_text(grammar_bytes(self.vocab_size))}, "
                                     "for which the memory budget keeps no room; load the model with structured=True")
                self.tokenizer.ask_all()
                self._grammars = Grammars(self.tokenizer, self.vocab_size)
            return self._grammars

    def score(self, tokens: Sequence[int], *, top: int = 0, start: int = 1, wait: bool = False,
              progress: Callable[[int, int], None] = lambda done, count: None) -> Scores:
        self._check_open()
        ids = self._checked_for_scores(tokens, top, start)
        scoring, turn, used = Scoring(ids, top, start), Turn(), list[Child]()
        rows = min(_ROWS, self._batch)

        def work(child: Child) -> None:
            """Compute the next tokens: those before the first that is scored, then a few whose logits are wanted."""
            if not self._turns.holds(turn):
                raise turn_lost()
            if not used:
                used.append(child)
                _recall(child, ids[:start - 1])
            done = len(child.held)
            if done < start - 1:
                child.compute(ids[done:start - 1][:self._batch], 0)
            else:
                some = ids[done:][:rows]
                scoring.add(child.compute(some, len(some)))

        self._turns.take(turn, wait=wait)
        try:
            done = 0
            while done < len(ids):
                self._connection.run(work, used[0] if used else None)
                done = len(used[0].held)
                progress(done, len(ids))
        finally:
            self._turns.give_back(turn)
        return scoring.scores()

    def save_session(self, path: str | os.PathLike[str], talk: Mapping[str, Any] | None = None, *,
                     wait: bool = True) -> None:
        raise _no_sessions()

    def wait_for_session(self) -> None:
        pass

    def open_session(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        raise _no_sessions()

    def close(self) -> None:
        self._turns.close()
        self._finalizer()


def _recall(child: Child, tokens: Sequence[int]) -> int:
    """Have the process begin as these tokens do, as far as it has computed them. Returns how many of them it has."""
    same = next((i for i, (a, b) in enumerate(zip(child.held, tokens, strict=False)) if a != b),
                min(len(child.held), len(tokens)))
    child.truncate(same)
    return len(child.held)


def _no_sessions() -> SessionError:
    return SessionError("conversations with a model that llama.cpp runs cannot be kept; leave --session away")
