"""The engine: one call computes n >= 1 new tokens of a session and returns logits for any of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from edgert.bundle import Bundle, Header
from edgert.errors import ModelError
from edgert.kernels.formats import FORMATS
from edgert.kernels.native import Library
from edgert.kernels.records import CANCELLED
from edgert.kernels.team import Team
from edgert.models.families import FAMILIES
from edgert.residency.file import FlashFile
from edgert.residency.placement import Placement
from edgert.residency.region import Region
from edgert.residency.source import Source, no_answer
from edgert.residency.weights import Weights

from .buffers import LOGIT_ROWS, Buffers
from .program_builder import ProgramBuilder
from .session import Session
from .tracing import Trace
from .worker import CancelledError


class NewTokens(NamedTuple):
    """New tokens at the end of a session. wanted: indices of those whose logits are wanted; None for the last.

    siblings: (index, token) each: another token in place of number `index`, at least 1, after the same tokens before
    it. The logits of each follow those that are wanted. The session's tokens do not become siblings; Session.adopt puts
    one, from slot `length before + len(tokens) + its number`, in its place.
    """

    session: Session
    tokens: Sequence[int]
    wanted: Sequence[int] | None = None
    siblings: Sequence[tuple[int, int]] = ()

    @property
    def total(self) -> int:
        """How many are computed."""
        return len(self.tokens) + len(self.siblings)

    def ids(self) -> np.ndarray:
        """All that are computed: int64."""
        return np.array([*self.tokens, *(token for _, token in self.siblings)], np.int64)

    def indices(self) -> np.ndarray:
        """Of those whose logits are wanted: int64."""
        wanted = [len(self.tokens) - 1] if self.wanted is None else self.wanted
        return np.array([*wanted, *range(len(self.tokens), self.total)], np.int64)

    def records(self) -> np.ndarray:
        """What the kernels need to know of all that are computed."""
        return self.session.records(len(self.tokens), [index for index, _ in self.siblings])


class Programs(NamedTuple):
    """What is run for new tokens, for their logits, and for both: records.py's arrays."""

    body: np.ndarray
    head: np.ndarray
    whole: np.ndarray


class Engine:
    """A loaded model that computes; `placement` says which of its weights stay in memory.

    New tokens are computed `chunk` at once; more are taken in turns. The results do not depend on that, nor on
    `threads`, nor on which weights are streamed, nor on what other sessions are computed together. context: of the
    largest session. progress: called now and then while weights are loaded; what it raises ends that.
    """

    def __init__(self, bundle: Bundle, file: FlashFile, library: Library, placement: Placement, *, chunk: int,
                 threads: int, context: int, cache_type: str, progress: Callable[[], None] = lambda: None) -> None:
        header = bundle.header
        self.config, self.chunk, self._cache_type = header.config, chunk, cache_type
        self._trace: Trace | None = None
        self._out_of_step = False
        """Whether what was expected of the source was not computed to its end."""
        with ExitStack() as made:
            self._team = Team(library, threads)
            made.callback(self._team.close)
            self._weights = Weights(bundle, file, placement, stop=lambda: self._team.set(stop=1),
                                    progress=progress)
            made.callback(self._weights.close)
            self._buffers = Buffers(self.config, header, self.chunk, threads, context)
            made.callback(self._buffers.close)
            embedding = header.embedding
            self._staging = Region(self.chunk * FORMATS[embedding.format].tile_bytes(embedding.columns), "embeddings")
            made.callback(self._staging.close)
            self._programs = tuple(self._build(header, cache_type, one_token=one) for one in (False, True))
            self._team.set(selected_rows=self._buffers.selected_buffer.address,
                           token_records=self._buffers.tokens_buffer.address, freed=self.source.freed)
            self._closing = made.pop_all()

    def _build(self, header: Header, cache_type: str, *, one_token: bool) -> Programs:
        network = ProgramBuilder(self.config, header, self._weights, self._buffers, cache_type, one_token=one_token)
        FAMILIES[self.config.architecture].wire(self.config, network)
        body, head = network.body.array, network.head.array
        return Programs(body, head, np.concatenate([body, head]))

    @property
    def source(self) -> Source:
        """Where weights come from that are not in memory."""
        return self._weights.source

    @property
    def waited_s(self) -> float:
        """Seconds that computing has waited for weights from flash."""
        return self._team.waited_s

    def forward(self, session: Session, tokens: Sequence[int], wanted: Sequence[int] | None = None, *,
                cancel: np.ndarray | None = None) -> np.ndarray:
        """Compute new tokens at the end of one session: `forward_all` of it alone."""
        return self.forward_all([NewTokens(session, tokens, wanted)], cancel=cancel)[0]

    def forward_all(self, batch: Sequence[NewTokens], *, cancel: np.ndarray | None = None) -> list[np.ndarray]:
        """Compute new tokens of several sessions together; each as if it were alone, to the bit.

        cancel: int64 of shape (1,); when somebody sets it to CANCELLED, computing ends. Returns for each session the
        logits that are wanted: float32 of shape (len(wanted), vocab_size).

        Raises ModelError when a context is full, a token is not in the vocabulary, or values are not finite, and what
        Source.check raises when weights cannot be read, after which nothing can be computed any more; in all cases the
        sessions are as they were. Raises CancelledError; then they have what was computed until then.
        """
        self._check(batch)
        starts = np.cumsum([0, *(new.total for new in batch)]).tolist()
        ids, records = (np.concatenate(each) for each in zip(*((n.ids(), n.records()) for n in batch), strict=True))
        indices = [start + new.indices() for new, start in zip(batch, starts, strict=False)]
        wanted = np.concatenate(indices)
        logits = np.empty((len(wanted), self.config.vocab_size), np.float32)
        lengths = [new.session.length for new in batch]
        self._team.cancellable(cancel)
        try:
            for first, last in pairwise(self._borders(batch)):
                if cancel is not None and cancel[0]:
                    raise CancelledError
                here = np.flatnonzero((wanted >= first) & (wanted < last))
                self._forward(ids[first:last], records[first:last], here, wanted[here] - first, logits)
                for new, start in zip(batch, starts, strict=False):
                    new.session.tokens += ids[max(first, start):min(last, start + len(new.tokens))].tolist()
        except CancelledError:
            raise
        except BaseException:
            for new, length in zip(batch, lengths, strict=True):
                new.session.truncate(length)
            raise
        return np.split(logits, np.cumsum([len(i) for i in indices])[:-1])

    def _borders(self, batch: Sequence[NewTokens]) -> list[int]:
        """Between what goes at once: `chunk` tokens, fewer where tokens that have siblings would be divided."""
        borders, start = [0], 0
        for new in batch:
            end = start + new.total
            if new.siblings and end > borders[-1] + self.chunk:
                borders.append(start)
            while end > borders[-1] + self.chunk:
                borders.append(borders[-1] + self.chunk)
            start = end
        return [*borders, start]

    def _forward(self, ids: np.ndarray, records: np.ndarray, here: np.ndarray, rows: np.ndarray,
                 logits: np.ndarray) -> None:
        """Compute tokens, at most as many as go at once, and logits[here] of those at `rows`."""
        count = self._tokens = len(ids)
        self._weights.embedding_tiles(ids, self._staging, self._buffers.rows[:count])
        self._buffers.tokens[:count, :records.shape[1]] = records
        self._team.set(tokens=count)
        with self._in_step(heads=-(-len(here) // LOGIT_ROWS)):
            self._compute(self._programs[count == 1], here, rows, logits)

    def _compute(self, programs: Programs, here: np.ndarray, rows: np.ndarray, logits: np.ndarray) -> None:
        """Compute the tokens that were set, and logits[here] of those at `rows`."""
        if not len(here):
            self._run(programs.body)
        for at in range(0, len(here), LOGIT_ROWS):
            some = rows[at:at + LOGIT_ROWS]
            self._buffers.selected[:len(some)] = some
            self._team.set(selected=len(some))
            self._run(programs.head if at else programs.whole)
            logits[here[at:at + LOGIT_ROWS]] = self._buffers.logits[:len(some)]

    @contextmanager
    def _in_step(self, heads: int) -> Iterator[None]:
        """Have what is streamed come as it will be used, also after an interruption in between."""
        self.source.check()
        if self._out_of_step:
            self.source.restart()
        self._out_of_step = True  # until all has been used
        self.source.expect(heads)
        yield
        self._out_of_step = False

    def touch(self) -> None:
        """Make all memory that computing will take resident now: in a budget nothing grows later."""
        self._buffers.touch()
        self._staging.touch()

    def trace(self, trace: Trace) -> None:
        """Have everything that is computed and read written down."""
        self._trace = trace
        self.source.trace(trace.read)

    def _run(self, program: np.ndarray) -> None:
        if self._trace is None:
            finite = self._team.run(program)
        else:
            times = np.zeros(len(program) + 1, np.int64)
            self._team.set(trace=times.ctypes.data)
            finite = self._team.run(program)
            self._team.set(trace=0)
            if not self._team.stopped:
                self._trace.computed(program, times, self._tokens)
        if self._team.stopped == CANCELLED:
            raise CancelledError
        if self._team.stopped:
            self.source.fail(no_answer())  # unless it said itself what is wrong
            self.source.check()
        if not finite:
            raise ModelError("the model computed values that are not finite; its weights or the cache type f16 "
                             "do not hold them, try --kv-type f32")

    def _check(self, batch: Sequence[NewTokens]) -> None:
        if len({id(new.session) for new in batch}) < len(batch):
            raise ModelError("a session may come only once in a call; give all its new tokens together")
        for new in batch:
            session, tokens, wanted, siblings = new
            if session.cache_type != self._cache_type or session.config != self.config:
                raise ModelError(f"the session is of another model, or its cache of type {session.cache_type} is not "
                                 f"this engine's, {self._cache_type}; make one for this engine")
            if np.ndim(tokens) != 1 or not len(tokens):
                raise ModelError("no tokens to compute: give at least one")
            for index, _ in siblings:
                if not 1 <= index < len(tokens):
                    raise ModelError(f"a sibling of token {index} was given, {len(tokens)} are new; the first has none")
            if siblings and new.total > self.chunk:
                raise ModelError(f"{len(tokens)} tokens and {len(siblings)} siblings of them cannot go at once, only "
                                 f"{self.chunk}; give fewer")
            ids = new.ids()
            if ids.min() < 0 or ids.max() >= self.config.vocab_size:
                raise ModelError(f"token {ids.min() if ids.min() < 0 else ids.max()} is not in the vocabulary of "
                                 f"{self.config.vocab_size}")
            if session.length + new.total > session.context:
                raise ModelError(f"the context is full: {session.length} tokens in use and {len(ids)} new ones, room "
                                 f"for {session.context}; start anew or raise --context")
            if wanted is not None and len(wanted) and (min(wanted) < 0 or max(wanted) >= len(tokens)):
                wrong = min(wanted) if min(wanted) < 0 else max(wanted)
                raise ModelError(f"logits of token {wrong} are wanted, {len(tokens)} are new")

    def close(self) -> None:
        """End the threads and give the memory back."""
        self._closing.close()
