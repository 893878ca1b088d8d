"""The Python API of a loaded bundle: generate, chat."""

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .answering import LanguageModel
from .bundle import Bundle
from .bundle.header import Header, LeftOut
from .conversations import Conversations
from .engine.session_file import open_session, save_session
from .engine.worker import CancelledError, Job, Worker, settle
from .errors import ModelError
from .generation.generation import Computing
from .generation.grammar import Grammars, grammar_bytes
from .generation.scoring import Scores, Scoring
from .generation.steps import Choosing, Step
from .generation.turns import Turns
from .kernels.records import CANCELLED
from .memory.plan import Plan
from .opening import CompileProgress, Settings, load_library, open_model
from .residency.device import device_of
from .residency.source import ExpertCounts, ReadHook
from .sizes import size_text
from .speculation.speculator import OFF, Asked, Speculator
from .speculation.together import Together

_SCORING_ROWS = 2
"""Rows of logits that scoring needs beside those it scores."""


class Model(LanguageModel):
    """A loaded model, made by `load`. It is a context manager.

    It gives one answer at a time, or as many as `parallel` says: a new answer ends the oldest one that is under way, or
    waits for one to finish (`wait=True`). Any thread may use the model. `plan` tells how it uses memory.

    The model keeps keys and values of the tokens that it computed last, as far as its key-value cache has room: of
    several conversations in turn. Of a new prompt it computes only what follows the longest beginning that is known:
    the next turn of a chat costs no more than what is new in it.

    Everything is computed in a thread of the model's own (engine/worker.py): Ctrl-C and other exceptions of signal
    handlers end what is being computed, at once, and leave the model as good as before. A model that is
    garbage-collected without `close` also gives its memory back. A forked process cannot use its parent's models.
    """

    plan: Plan
    max_loss: float
    """As `load` was told."""
    left_out: LeftOut | None
    """What experts or neurons are left out because of it, and what that costs; None for none."""
    keeps_sessions = True

    def __init__(self, path: str | os.PathLike[str], settings: Settings, compile_progress: CompileProgress) -> None:
        self.threads, self.parallel, self._kv_policy = settings.threads, settings.parallel, settings.kv_policy
        self.max_loss = settings.max_loss
        with Bundle(path):
            pass  # a file that is no bundle is refused before anything is compiled
        library = load_library(compile_progress)
        settle()
        self._worker = Worker("edgert-model")
        opened = self._worker.opened
        loaded = self._worker.run(lambda job: open_model(path, library, settings, opened, job))
        (self._bundle, self._text, self._planner, self.plan, self._file, sessions, prefixes, self._engine,
         self._grammars, self.left_out) = loaded
        self._turns = Turns(self.parallel)
        self._conversations = Conversations(sessions, prefixes, self._turns)
        self._grammars_lock = threading.Lock()
        self._speculator = Speculator(self._engine, settings.speculation)
        self._together = Together(self._speculator)
        self._saving: Job[None] | None = None
        self.tokenizer = self._text.tokenizer

    @property
    def header(self) -> Header:
        """The bundle's header: hyper-parameters, provenance, quantization."""
        return self._bundle.header

    @property
    def direct(self) -> bool:
        """Whether reads of the bundle bypass the page cache."""
        return self._file.direct

    @property
    def read_again(self) -> int:
        """How many reads failed, or brought damaged data, and were repeated."""
        return self._file.read_again

    @property
    def digest(self) -> str:
        """The checksum of all that the bundle holds, in hexadecimal digits."""
        return self._bundle.digest

    @property
    def chat_template(self) -> str | None:
        """The bundle's chat template, None if it has none."""
        return self._text.template

    @property
    def price(self) -> float:
        return 0.0 if self.left_out is None else self.left_out.nats

    @property
    def _threshold(self) -> float:
        """Of what is left out; 0 for nothing."""
        return 0.0 if self.left_out is None else self.left_out.threshold

    @property
    def experts_per_token(self) -> float | None:
        """How many experts a token had in each layer, on average over all that were computed since the model was
        loaded; None where none are left out, or nothing was computed."""
        return self._engine.routing.per_token

    @property
    def computed(self) -> int:
        """How many tokens of the current conversation have been computed: during prefill, how far it has come."""
        return self._conversations.current.length

    @property
    def read_bytes(self) -> int:
        """How many bytes have been read from flash since the model was loaded."""
        return self._engine.source.reading.bytes

    @property
    def expert_counts(self) -> ExpertCounts | None:
        """How often experts were needed, and were in memory, since the model was loaded; None where nothing is read of
        them."""
        return self._engine.source.reading.experts

    def follow_reads(self, hook: ReadHook) -> None:
        """Call `hook` after every read from flash, from the thread that read. It takes the place of a trace's."""
        self._engine.source.trace(hook)

    def budgets(self) -> tuple[int, int]:
        """The smallest budget that works with these settings and the smallest with which nothing is read from flash, in
        bytes, as they are told to users. Measures the disk (three seconds) if it never was."""
        planner = self._planner
        disk = self.plan.disk or device_of(self._bundle.path)
        return planner.named(planner.smallest(disk)), planner.named(planner.whole)

    @property
    def context(self) -> int:
        """How many tokens prompt and answers may have together."""
        return self._conversations.current.context

    @property
    def kv_policy(self) -> str:
        """What happens when the context is full, as `load` was told."""
        return self._kv_policy

    @property
    def longest_context(self) -> int:
        """The largest context that the model was made for."""
        return self._bundle.longest_context

    @property
    def vocab_size(self) -> int:
        """How many logits there are, which may be more than there are tokens."""
        return self.header.config.vocab_size

    @property
    def drafts(self) -> bool:
        """Whether it guesses tokens with what stays in memory of its weights."""
        return self._engine.drafts and self.guesses

    @property
    def guesses(self) -> bool:
        """Whether it guesses tokens, if only those that followed the last ones before."""
        return self._speculator.mode != OFF

    @property
    def endless(self) -> bool:
        """Whether conversations may go on when the context is full: the model then forgets, as its kv_policy says."""
        return self._engine.policy.goes_at_once(self.context) > 0

    def _check_open(self) -> None:
        self._worker.check()

    def _loaded_grammars(self) -> Grammars:
        """What makes grammars, prepared now if it was not by `load`. Raises ModelError if the budget has no room."""
        with self._grammars_lock:
            if self._grammars is None:
                vocab_size = self.header.config.vocab_size
                needed = grammar_bytes(vocab_size)
                if (spare := self.plan.budget - sum(self.plan.parts.values())) < needed:
                    raise ModelError(f"answers that follow a grammar take {size_text(needed)}, and the memory budget "
                                     f"has {size_text(spare)} to spare; raise that, or load the model with "
                                     "structured=True, so that weights make room")
                self._grammars = Grammars(self.tokenizer, vocab_size)
            return self._grammars

    def _computing(self, ids: Sequence[int], wait: bool) -> Computing:
        """The functions through which an answer uses this model; each checks that the answer still has its turn."""
        turn = self._conversations.turn(ids)
        running: list[Job[None]] = []
        held = weakref.ref(turn)

        def holds() -> bool:
            """Whether it has its turn; this does not keep it."""
            return (kept := held()) is not None and self._turns.holds(kept)

        def begin() -> int:
            self._turns.take(turn, wait=wait)
            return self._worker.run(work_begin)

        def work_begin(job: Job[int]) -> int:
            """How many prompt tokens are in the cache already; the last one is always computed, for its logits."""
            session = self._conversations.session_of(turn)
            known = self._conversations.recall(session, ids[:-1])
            session.read(ids)
            return known

        def run(work: Callable[[Job[None]], None]) -> None:
            def followed(job: Job[None]) -> None:
                running.append(job)  # before the turn is looked at: whoever ends it meanwhile finds one or the other
                try:
                    self._conversations.check(turn)
                    work(job)
                finally:
                    running.clear()

            self._worker.run(followed)

        def step(new: Sequence[int], choosing: Choosing, most: int) -> Step:
            self._worker.check()  # a forked process learns that first, also from an answer whose turn is over
            try:
                session = self._conversations.session_of(turn)
                return self._together.step(Asked(session, new, choosing, most), holds, run)
            except CancelledError:
                self._conversations.check(turn)
                raise

        def end() -> None:
            self._turns.give_back(turn)
            for job in running[:]:  # another thread waits for what nobody wants any more
                job.cancel[0] = CANCELLED

        def computed() -> int:
            with suppress(ModelError):
                return self._conversations.session_of(turn).length
            return 0

        return Computing(begin, step, end, self._flash, computed)

    def _check_alone(self) -> None:
        """Raises ModelError where there is not one conversation that is meant."""
        if self.parallel > 1:
            raise ModelError(f"this model gives {self.parallel} answers at once; load it with parallel=1 for that")

    def _flash(self) -> tuple[int, float]:
        of_cache = self._conversations.current.blocks.bytes_from_flash
        return self._engine.source.reading.bytes + of_cache, self._engine.waited_s

    def score(self, tokens: Sequence[int], *, top: int = 0, start: int = 1, wait: bool = False,
              progress: Callable[[int, int], None] = lambda done, count: None) -> Scores:
        """How likely the model finds each token of a text, given those before it.

        It has the model as an answer has it, from its beginning to its end: a newer answer ends it, and `wait` waits
        for the current one. Of positions whose logits are wanted nothing is taken from the key-value cache, but what is
        computed stays there for others. No more logits are in memory at once than the budget has room for.

        top: also give so many most likely tokens of each position. start: score the tokens from this one on, and take
        what comes before `start - 1` from the cache if it is there; 1 for all that have tokens before them.
        progress(done, count): called after each pass over the weights, in the calling thread; what it raises ends this.

        Raises ModelError for a text without tokens or longer than the context, settings that are out of range, and a
        newer answer.
        """
        self._worker.check()
        ids = self._checked_for_scores(tokens, top, start)
        scoring, turn = Scoring(ids, top, start), self._conversations.turn(ids)
        rows = min(max(self.plan.logit_rows - _SCORING_ROWS, 1), self.plan.chunk)

        def begin(job: Job[None]) -> None:
            session = self._conversations.session_of(turn)
            held = self._conversations.recall(session, ids[:start - 1])
            if held < start - 1:
                self._engine.forward(session, ids[held:start - 1], [], cancel=job.cancel)

        def work(job: Job[None]) -> None:
            session = self._conversations.session_of(turn)
            some = ids[session.length:][:rows]
            scoring.add(self._engine.forward(session, some, range(len(some)), cancel=job.cancel))

        self._turns.take(turn, wait=wait)
        try:
            self._worker.run(begin)
            for first in range(start - 1, len(ids), rows):
                self._worker.run(work)
                progress(min(first + rows, len(ids)), len(ids))
        finally:
            self._turns.give_back(turn)
        return scoring.scores()

    def extend(self, tokens: Sequence[int], *, every: bool = False) -> np.ndarray:
        """Compute tokens after those computed since the last `reset`, without sampling. Ends the current answer.

        Returns the logits of the last token, or with `every` of all n tokens: float32 of shape (1, vocab_size) or
        (n, vocab_size). They count toward the memory budget, which has room for `plan.logit_rows` tokens at once.
        Raises ModelError, also for a model that gives several answers at once (`parallel`).
        """
        self._check_alone()
        wanted = range(len(tokens)) if every else None
        if every and len(tokens) > self.plan.logit_rows:
            raise ModelError(f"the logits of {len(tokens)} tokens take "
                             f"{size_text(4 * len(tokens) * self.header.config.vocab_size)}, and the memory budget "
                             f"has room for {self.plan.logit_rows} at once; ask for so many at a time, or raise it")

        def work(job: Job[np.ndarray]) -> np.ndarray:
            self._turns.end()
            return self._engine.forward(self._conversations.current, tokens, wanted, cancel=job.cancel)

        return self._worker.run(work)

    def reset(self, keep: int = 0) -> None:
        """Forget all tokens computed so far but the first `keep`, which costs nothing; where layers see a window of the
        latest positions, some of those may have to be computed again. Ends the current answer.

        Raises ModelError if fewer than `keep` have been computed, and where `extend` does.
        """
        self._check_alone()

        def work(job: Job[None]) -> None:
            self._turns.end()
            kept = self._conversations.current.tokens[:keep]
            self._conversations.current.truncate(keep)
            if missing := kept[self._conversations.current.length:]:
                self._engine.forward(self._conversations.current, missing, [], cancel=job.cancel)

        self._worker.run(work)

    def save_session(self, path: str | os.PathLike[str], talk: Mapping[str, Any] | None = None, *,
                     wait: bool = True) -> None:
        """Write what was computed last, its tokens with their keys and values, into a file (engine/session_file.py).

        The file is replaced as a whole, or not at all. talk: JSON values that `open_session` shall return. wait: False
        to have it written while the caller goes on; what is computed next waits for it. Raises SessionError, also for
        what was written before without waiting and could not be; and ModelError where `extend` does.
        """
        self._check_alone()
        self.wait_for_session()
        session, digest, policy = self._conversations.current, self._bundle.digest, self._kv_policy
        threshold = self._threshold
        kept = dict(talk or {})

        def work(job: Job[None]) -> None:
            save_session(Path(path), session, digest, policy, kept, threshold)

        if wait:
            self._worker.run(work)
        else:
            self._saving = self._worker.post(work)

    def wait_for_session(self) -> None:
        """Wait until what `save_session` writes is written. Raises SessionError if it cannot be."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.done.wait()
            saving.result()

    def open_session(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Go on with a session that `save_session` has written: nothing of it is computed again. Ends the current
        answer. Returns its `talk`. Raises SessionError for a file that is damaged, or does not go with this model and
        its settings, and ModelError where `extend` does.
        """
        self._check_alone()
        file = open_session(Path(path))

        def work(job: Job[None]) -> None:
            file.check(self._bundle.digest, self._conversations.current, self._threshold, self.header.losses)
            self._turns.end()
            file.read_into(self._conversations.leave())

        self._worker.run(work)
        return file.saved.talk

    def close(self) -> None:
        """End the threads and free the memory. Waits for what another thread is computing."""
        self._turns.close()
        self._worker.close()
