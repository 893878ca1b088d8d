"""The engine: one call computes n >= 1 new tokens of a session and returns logits for any of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from edgert.bundle import Bundle, Header
from edgert.bundle.header import ExpertLoss
from edgert.errors import ModelError
from edgert.kernels.formats import FORMATS
from edgert.kernels.native import Library
from edgert.kernels.records import CANCELLED, Code
from edgert.kernels.team import Team
from edgert.models.families import FAMILIES
from edgert.residency.drafting import Drafting
from edgert.residency.file import FlashFile
from edgert.residency.placement import Placement
from edgert.residency.region import Region
from edgert.residency.source import Source, no_answer
from edgert.residency.weights import Weights

from .buffers import Buffers
from .expert_program import Routing
from .key_centers import key_centers
from .page_stream import PageStream
from .program_builder import Kind, Places, ProgramBuilder
from .retention import OBSERVED, POLICIES, STOP, Policy
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

    def records(self, first: int, last: int) -> np.ndarray:
        """What the kernels need to know of those with numbers from `first` to `last`, all before them being part of
        the session."""
        end = min(last, len(self.tokens))
        return self.session.records(end - first, [index - first for index, _ in self.siblings[:last - end]])


class Programs(NamedTuple):
    """What is run for new tokens, for their logits, and for both: records.py's arrays."""

    body: np.ndarray
    head: np.ndarray
    whole: np.ndarray


class Engine:
    """A loaded model that computes; `placement` says which of its weights stay in memory.

    New tokens are computed `chunk` at once; more are taken in turns. The results do not depend on that, nor on
    `threads`, nor on which weights are streamed, nor on what other sessions are computed together. context: of the
    largest session. logit_rows: rows of logits computed at once. What the bundle's header leaves out is left out; the
    results depend on it. progress: called now and then while weights are loaded; what it raises ends that.
    """

    def __init__(self, bundle: Bundle, file: FlashFile, library: Library, placement: Placement, *, chunk: int,
                 threads: int, context: int, cache_type: str, logit_rows: int, policy: Policy = POLICIES[STOP],
                 progress: Callable[[], None] = lambda: None) -> None:
        header = bundle.header
        self.routing = Routing(header.left_out.threshold if isinstance(header.left_out, ExpertLoss) else 0.0)
        self.config, self.chunk, self._cache_type = header.config, chunk, cache_type
        self.policy = policy
        self._trace: Trace | None = None
        self._cancel: np.ndarray | None = None
        self._waited_for_pages_s = 0.0
        self._out_of_step = False
        """Whether what was expected of the source was not computed to its end."""
        with ExitStack() as made:
            self._team = Team(library, threads)
            made.callback(self._team.close)
            self._weights = Weights(bundle, file, library, placement, stop=lambda: self._team.set(stop=1),
                                    progress=progress)
            made.callback(self._weights.close)
            self._buffers = Buffers(self.config, header, self.chunk, threads, context, logit_rows,
                                    observes=policy.observes)
            made.callback(self._buffers.close)
            embedding = header.embedding
            self._staging = Region(self.chunk * FORMATS[embedding.format].tile_bytes(embedding.columns), "embeddings")
            made.callback(self._staging.close)
            places: dict[Kind, Places] = {Kind.MANY: self._weights, Kind.ONE: self._weights}
            if policy.observes:
                places[Kind.OBSERVING] = self._weights
            if Drafting.possible(header, placement):
                self._drafting = places[Kind.DRAFT] = Drafting(self._weights, header, placement)
            self._centers = key_centers(header, self._weights)
            self._programs = {kind: self._build(header, of, cache_type, kind) for kind, of in places.items()}
            self._team.set(selected_rows=self._buffers.selected_buffer.address,
                           token_records=self._buffers.tokens_buffer.address, freed=self.source.freed)
            self._closing = made.pop_all()

    def _build(self, header: Header, places: Places, cache_type: str, kind: Kind) -> Programs:
        network = ProgramBuilder(self.config, header, places, self._buffers, cache_type, kind, self._centers,
                                 self.routing)
        FAMILIES[self.config.architecture].wire(self.config, network)
        body, head = network.body.array, network.head.array
        return Programs(body, head, np.concatenate([body, head]))

    @property
    def source(self) -> Source:
        """Where weights come from that are not in memory."""
        return self._weights.source

    @property
    def waited_s(self) -> float:
        """Seconds that computing has waited for what comes from flash."""
        return self._team.waited_s + self._waited_for_pages_s

    @property
    def logit_rows(self) -> int:
        """Rows of logits computed at once."""
        return self._buffers.logit_rows

    @property
    def drafts(self) -> bool:
        """Whether what stays in memory makes a coarser model: `draft`."""
        return Kind.DRAFT in self._programs

    def draft(self, session: Session, token: int, *, cancel: np.ndarray | None = None) -> np.ndarray:
        """Compute one new token at the end of a session with what stays in memory alone, waiting for nothing.

        Its keys and values are a guess too: whoever knows better truncates the session and computes it again. Returns
        logits of the first tokens of the vocabulary, as many as the output head has rows in memory: float32, valid
        until something else is computed; NaN where they are not finite. cancel, and what is raised: as of `forward`.
        """
        self._begin([NewTokens(session, [token])], cancel)
        self.source.pause()
        self._set(np.array([token], np.int64), session.record_in_memory())
        self._buffers.selected[0] = 0
        self._team.set(selected=1)
        logits = self._buffers.logits[0, :self._drafting.rows]
        if not self._run(self._programs[Kind.DRAFT].whole):
            logits[:] = np.nan
        session.tokens.append(token)
        return logits

    def verify(self, batch: Sequence[NewTokens], *, cancel: np.ndarray | None = None) -> list[np.ndarray]:
        """Compute new tokens all of whose logits are wanted, and their siblings', without a copy where there is room.

        Returns for each session float32 of shape (new.total, vocab_size), valid until something else is computed.
        cancel, and what is raised: as of `forward_all`.
        """
        batch = [new._replace(wanted=range(len(new.tokens))) for new in batch]
        total = sum(new.total for new in batch)
        if total > min(self.chunk, self.logit_rows):
            return self.forward_all(batch, cancel=cancel)
        self._begin(batch, cancel)
        everything = np.arange(total)
        self._at_once(batch, np.concatenate([new.ids() for new in batch]), 0, total, everything, everything, None)
        return np.split(self._buffers.logits[:total], np.cumsum([new.total for new in batch])[:-1])

    def _begin(self, batch: Sequence[NewTokens], cancel: np.ndarray | None) -> None:
        """Check what is to be computed, and have `cancel` end that. Raises ModelError, CancelledError."""
        self._check(batch)
        self._cancel = cancel
        self._team.cancellable(cancel)
        if cancel is not None and cancel[0]:
            raise CancelledError

    def forward(self, session: Session, tokens: Sequence[int], wanted: Sequence[int] | None = None, *,
                cancel: np.ndarray | None = None) -> np.ndarray:
        """Compute new tokens at the end of one session: `forward_all` of it alone."""
        return self.forward_all([NewTokens(session, tokens, wanted)], cancel=cancel)[0]

    def forward_all(self, batch: Sequence[NewTokens], *, cancel: np.ndarray | None = None) -> list[np.ndarray]:
        """Compute new tokens of several sessions together; each as if it were alone, to the bit.

        cancel: int64 of shape (1,); when somebody sets it to CANCELLED, computing ends. Returns for each session the
        logits that are wanted: float32 of shape (len(wanted), vocab_size).

        Raises ModelError when a context is full and its policy is to stop, a token is not in the vocabulary, or values
        are not finite, and what Source.check raises when weights cannot be read, after which nothing can be computed
        any more; in all cases the sessions are as they were, or empty if a policy has let go of something since. Raises
        CancelledError; then they have what was computed until then.
        """
        self._begin(batch, cancel)
        ids = np.concatenate([new.ids() for new in batch])
        indices = [start + new.indices() for new, start in _with_starts(batch)]
        wanted = np.concatenate(indices)
        logits = np.empty((len(wanted), self.config.vocab_size), np.float32)
        lengths = [new.session.length for new in batch]
        try:
            for first, last in pairwise(self._borders(batch)):
                if cancel is not None and cancel[0]:
                    raise CancelledError
                here = np.flatnonzero((wanted >= first) & (wanted < last))
                self._at_once(batch, ids, first, last, here, wanted[here] - first, logits)
        except CancelledError:
            raise
        except BaseException:
            for new, length in zip(batch, lengths, strict=True):
                new.session.truncate(length)
            raise
        return np.split(logits, np.cumsum([len(i) for i in indices])[:-1])

    def _borders(self, batch: Sequence[NewTokens]) -> list[int]:
        """Between what goes at once: `chunk` tokens, fewer where tokens that have siblings would be divided, or where a
        session is full and its policy makes room."""
        borders, end = [0], 0
        for new, start in _with_starts(batch):
            end, full = start + new.total, start + new.session.room
            if new.siblings and end > borders[-1] + self.chunk:
                borders.append(start)
            while end > (border := min(borders[-1] + self.chunk, max(full, borders[-1]))):
                if border == full:
                    full += self.policy.goes_at_once(new.session.context)
                if border > borders[-1]:
                    borders.append(border)
        return [*borders, end]

    def _make_room(self, sessions: Sequence[Session]) -> None:
        """Let the policy let go of something in sessions that are full."""
        for session in sessions:
            if not session.room:
                self.policy.make_room(session, lambda session=session: self._observe(session))  # type: ignore[misc]
                if session.ahead + session.context > self.config.max_position_embeddings:
                    session.turn(self._centers)

    def _observe(self, session: Session) -> np.ndarray:
        """How much attention the last OBSERVED tokens of a session pay to each position, or while a prompt is being
        read, those at its end: they are computed in the place of the last ones. float32 of shape (layers, key-value
        heads, session.held), valid until the next time."""
        self._buffers.masses[:] = 0
        with session.tried(OBSERVED) as last:
            tokens = session.coming[-OBSERVED:] or last
            for start in range(0, len(tokens), self.chunk):
                some = tokens[start:start + self.chunk]
                self._set(np.array(some, np.int64), session.records(len(some)))
                with self._in_step(heads=0):
                    self._run_exact(self._programs[Kind.OBSERVING].body)
                session.tokens += some
        return self._buffers.masses[..., :session.held]

    def _set(self, ids: np.ndarray, records: np.ndarray) -> None:
        """Have these tokens computed next."""
        count = self._tokens = len(ids)
        self._weights.embedding_tiles(ids, self._staging, self._buffers.rows[:count])
        self._buffers.tokens[:count, :records.shape[1]] = records
        self._team.set(tokens=count)

    def _at_once(self, batch: Sequence[NewTokens], ids: np.ndarray, first: int, last: int, here: np.ndarray,
                 rows: np.ndarray, logits: np.ndarray | None) -> None:
        """Compute ids[first:last] of a batch's `ids`, at most as many as go at once, and logits[here] of those at
        `rows` among them; None: they stay in the buffer."""
        some = [(new, start) for new, start in _with_starts(batch) if start < last and start + new.total > first]
        sessions = [new.session for new, _ in some]
        self._make_room(sessions)
        self._set(ids[first:last], np.concatenate([
            new.records(max(first - start, 0), min(last - start, new.total)) for new, start in some]))
        streams = [stream for session in sessions if (stream := session.blocks.start_reading()) is not None]
        with self._in_step(heads=-(-len(here) // self.logit_rows)):
            self._compute(self._programs[Kind.ONE if last - first == 1 else Kind.MANY], streams, here, rows, logits)
        for new, start in some:
            new.session.tokens += ids[max(first, start):min(last, start + len(new.tokens))].tolist()

    def _compute(self, programs: Programs, streams: Sequence[PageStream], here: np.ndarray, rows: np.ndarray,
                 logits: np.ndarray | None) -> None:
        """Compute the tokens that were set, and logits[here] of those at `rows`."""
        if not len(here):
            self._run_exact(programs.body, streams)
        for at in range(0, len(here), self.logit_rows):
            some = rows[at:at + self.logit_rows]
            self._buffers.selected[:len(some)] = some
            self._team.set(selected=len(some))
            self._run_exact(programs.head if at else programs.whole, () if at else streams)
            if logits is not None:
                logits[here[at:at + self.logit_rows]] = self._buffers.logits[:len(some)]

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

    def _run_exact(self, program: np.ndarray, streams: Sequence[PageStream] = ()) -> None:
        """Run a program. streams: of what its attention needs from flash. Raises ModelError, CancelledError."""
        if not (self._run_by_layers(program, streams) if streams else self._run(program)):
            raise ModelError("the model computed values that are not finite; its weights or the cache type f16 "
                             "do not hold them, try --kv-type f32")

    def _run_by_layers(self, program: np.ndarray, streams: Sequence[PageStream]) -> bool:
        """Run a program in parts, each up to the next layer's attention, when its pages are there."""
        finite, start = True, 0
        for layer, attention in enumerate(np.flatnonzero(program[:, 0] == Code.ATTENTION).tolist()):
            finite &= self._run(program[start:attention])
            started = time.perf_counter()
            for stream in streams:
                if layer:
                    stream.done(layer - 1)
                stream.wait(layer, self._check_cancelled)
            self._waited_for_pages_s += time.perf_counter() - started
            start = attention
        return finite & self._run(program[start:])

    def _check_cancelled(self) -> None:
        if self._cancel is not None and self._cancel[0] == CANCELLED:
            raise CancelledError

    def _run(self, program: np.ndarray) -> bool:
        """Whether all values stayed finite."""
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
        return finite

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
            if new.total > session.room and not (self.policy.goes_at_once(session.context)):
                raise ModelError(f"the context is full: {session.held} tokens in use and {len(ids)} new ones, room "
                                 f"for {session.context}; start anew or raise --context")
            if wanted is not None and len(wanted) and (min(wanted) < 0 or max(wanted) >= len(tokens)):
                wrong = min(wanted) if min(wanted) < 0 else max(wanted)
                raise ModelError(f"logits of token {wrong} are wanted, {len(tokens)} are new")

    def close(self) -> None:
        """End the threads and give the memory back."""
        self._closing.close()


def _with_starts(batch: Sequence[NewTokens]) -> list[tuple[NewTokens, int]]:
    """Each with the number of its first token in the whole batch."""
    return list(zip(batch, accumulate((new.total for new in batch), initial=0), strict=False))
