"""The Python API: load a bundle, generate, chat."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import psutil

from .bundle import Bundle
from .bundle.header import CHAT_TEMPLATE, TOKENIZER, Header
from .engine.engine import Engine
from .engine.session import Session, check_session
from .engine.tracing import Trace
from .engine.worker import Job, Worker, settle
from .errors import BundleError, EdgertError, ModelError
from .generation.generation import Answer, Computing, Generation
from .generation.sampling import Sampling
from .generation.turns import Turn, Turns
from .kernels import native
from .memory.budget import allowance, parse_size, process_bytes, size_text
from .memory.plan import Plan, Planner
from .residency.device import device_of
from .residency.file import FlashFile
from .residency.region import Region
from .text.chat_template import ChatTemplate
from .text.tokenizer import Tokenizer, check_unicode

DEFAULT_CONTEXT = 4096
DEFAULT_CHUNK = 256
_LONGEST_TOKEN = 128
"""Characters; the longest tokens of known vocabularies are runs of spaces."""
CompileProgress = Callable[[int, int, str], None]


def load(path: str | os.PathLike[str], *, memory: int | str | None = None, threads: int | None = None,
         context: int | None = None, prefill_chunk: int = DEFAULT_CHUNK, kv_type: str | None = None,
         trace: str | os.PathLike[str] | None = None,
         compile_progress: CompileProgress = lambda number, count, name: None) -> "Model":
    """Load a bundle.

    memory: the budget of the whole process, in bytes or like "600M" (budget.parse_size); weights that have no room in
    it are read from flash for each token. By default what fits comfortably in the memory that is free now. threads: how
    many compute, by default one for each physical core that this process may use. context: how many tokens fit in the
    conversation, by default 4096 or what the model takes. prefill_chunk: prompt tokens computed at once, at most.
    kv_type: element type of the key-value cache, "f16" or "f32", by default "f16", and "f32" for bundles that are not
    quantized. trace: a file to write what was computed and read when, in Chrome's trace format, when the model is
    closed. compile_progress(number, count, kernel) is called before each kernel that has to be compiled, at the very
    first start only. The answers depend neither on memory, nor on threads, nor on prefill_chunk.

    Raises BundleError for a bundle that is damaged or none, ModelError for settings out of range or too little memory.
    """
    return Model(path, memory=memory, threads=threads, context=context, prefill_chunk=prefill_chunk, kv_type=kv_type,
                 trace=trace, compile_progress=compile_progress)


def default_threads() -> int:
    """The physical cores that this process may run on."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:
        allowed = os.cpu_count() or 1
    return max(min(psutil.cpu_count(logical=False) or allowed, allowed), 1)


def session_settings(header: Header, context: int | None, kv_type: str | None) -> tuple[int, str]:
    """The context and the cache's element type, with defaults for what is None. Raises ModelError."""
    quantized = header.quantization.get("preset") != "f32"
    kv_type = kv_type or ("f16" if quantized else "f32")
    context = min(DEFAULT_CONTEXT, header.config.max_position_embeddings) if context is None else context
    check_session(header.config, context, kv_type)
    return context, kv_type


class Text(NamedTuple):
    """What a bundle says of text. template: the chat template, None where there is none."""

    tokenizer: Tokenizer
    template: str | None


def load_library(compile_progress: CompileProgress = lambda number, count, name: None) -> native.Library:
    """The kernels for this machine. Raises EdgertError."""
    try:
        return native.library(progress=compile_progress)
    except (ValueError, native.CompilationError) as error:
        raise EdgertError(str(error)) from None


def read_text(bundle: Bundle) -> Text:
    """Tokenizer and chat template. Raises EdgertError."""
    generation = bundle.header.generation
    tokenizer = Tokenizer.from_json(bundle.read_section(TOKENIZER), generation["bos_token_id"],
                                    generation["eos_token_ids"], generation["add_bos_token"])
    return Text(tokenizer, _template_text(bundle))


def _template_text(bundle: Bundle) -> str | None:
    if CHAT_TEMPLATE not in bundle.header.sections:
        return None
    try:
        return bundle.read_section(CHAT_TEMPLATE).decode()
    except UnicodeDecodeError:
        raise BundleError(f"{bundle.path}: the chat template is not UTF-8 text; convert the model again") from None


@dataclass(frozen=True)
class _Settings:
    """What `load` was asked for. memory: bytes. kv_type, context: None for the bundle's own."""

    memory: int | None
    threads: int
    context: int | None
    chunk: int
    kv_type: str | None
    trace: str | os.PathLike[str] | None


class Model:
    """A loaded model, which gives one answer at a time: a new one ends the one under way, unless told to wait for it.

    Every thread may use it, and several may ask with `wait=True`. `plan` says how it uses memory. A context manager.

    The model remembers the tokens it computed last and computes only what a new prompt does not share with them: the
    next turn of a chat costs no more than what is new in it.

    Everything is computed in a thread of the model's own (engine/worker.py): Ctrl-C and other exceptions of signal
    handlers end what is being computed, at once, and leave the model as good as before. A model that is let go without
    `close` gives its memory back too. A forked process cannot use the models of its parent.
    """

    def __init__(self, path: str | os.PathLike[str], *, memory: int | str | None, threads: int | None,
                 context: int | None, prefill_chunk: int, kv_type: str | None,
                 trace: str | os.PathLike[str] | None, compile_progress: CompileProgress) -> None:
        threads = default_threads() if threads is None else threads
        for name, value, most in (("threads", threads, 256), ("prefill_chunk", prefill_chunk, 4096)):
            if not 1 <= value <= most:
                raise ModelError(f"{name} is {value}; it goes from 1 to {most}")
        self.threads = threads
        self._turns = Turns()
        budget = parse_size(memory) if isinstance(memory, str) else memory
        if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget <= 0):
            raise ModelError(f"memory is {memory!r}; give bytes, or a text like 600M")
        settings = _Settings(budget, threads, context, prefill_chunk, kv_type, trace)
        with Bundle(path):
            pass  # what is none is known before anything is compiled
        library = load_library(compile_progress)
        settle()
        self._worker = Worker("edgert-model")
        opened = self._worker.opened
        loaded = self._worker.run(lambda job: _open(path, library, settings, opened, job))
        self._bundle, self._text, self.plan, self._file, self._session, self._engine = loaded
        self.tokenizer = self._text.tokenizer

    @property
    def header(self) -> Header:
        """What the bundle says of itself: hyper-parameters, provenance, quantization."""
        return self._bundle.header

    @property
    def direct(self) -> bool:
        """Whether the bundle is read past the page cache."""
        return self._file.direct

    @property
    def read_again(self) -> int:
        """How many reads failed, or brought something damaged, and were done again."""
        return self._file.read_again

    @property
    def context(self) -> int:
        """How many tokens fit in a conversation."""
        return self._session.context

    def generate(self, prompt: str | Sequence[int], *, max_tokens: int | None = None, temperature: float = 0.0,
                 top_k: int = 40, top_p: float = 0.95, min_p: float = 0.05, repetition_penalty: float = 1.0,
                 seed: int | None = None, stop: str | Sequence[str] = (), logprobs: int | None = None,
                 ignore_eos: bool = False, wait: bool = False) -> Generation:
        """Continue a text, or token ids, ending the answer under way or, with `wait`, when it is over.

        Iterating over what comes back yields `Piece`s. Nothing happens before the first piece is asked for: then the
        answer begins, and the one under way raises ModelError when it is asked for its next piece. With `wait` the
        first piece comes when the answer under way is finished, closed or let go, and all that waited before too; a
        thread that waits for an answer which only itself would go on with waits for ever. max_tokens: None for as many
        as the context holds. temperature 0 is greedy; the other settings are explained in `Sampling`. stop: texts that
        end the answer. logprobs: give each token's log-probability and those of so many most likely ones.

        Raises ModelError for settings out of range or a prompt that does not fit.
        """
        self._worker.check()
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed=seed)
        if max_tokens is not None and max_tokens < 0:
            raise ModelError(f"max_tokens is {max_tokens}; it is 0 or more")
        if logprobs is not None and not 0 <= logprobs <= 1000:
            raise ModelError(f"logprobs is {logprobs}; it goes from 0 to 1000")
        stop = [stop] if isinstance(stop, str) else list(stop)
        for text in stop:
            check_unicode(text, "A stop string cannot be used")
        if isinstance(prompt, str):
            self._check_length(prompt)
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        if not ids:
            raise ModelError("the prompt is empty; give at least one character")
        room = self._session.context - len(ids) + 1
        if room < 1:
            raise ModelError(f"the prompt has {len(ids)} tokens, the context room for {self._session.context}; "
                             "shorten it or raise the context")
        return Generation(Answer(
            self._computing(ids, wait), self.tokenizer, ids, room, max_tokens=max_tokens, sampling=sampling,
            stop=stop, logprobs=logprobs, ignore_eos=ignore_eos))

    def _computing(self, ids: Sequence[int], wait: bool) -> Computing:
        """What an answer to a prompt asks of this model, each in its turn."""
        turn = Turn()

        def begin() -> int:
            self._turns.take(turn, wait=wait)
            return self._worker.run(work_begin)

        def work_begin(job: Job[int]) -> int:
            """How many tokens of the prompt the session holds; the last one is always computed, for its logits."""
            self._check_turn(turn)
            held = self._session.common_prefix(ids[:-1])
            self._session.truncate(held)
            return held

        def step(new: Sequence[int]) -> np.ndarray:
            def work(job: Job[np.ndarray]) -> np.ndarray:
                self._check_turn(turn)
                return self._engine.forward(self._session, new, cancel=job.cancel)[0]

            return self._worker.run(work)

        return Computing(begin, step, lambda: self._turns.give_back(turn), self._flash)

    def _check_turn(self, turn: Turn) -> None:
        if not self._turns.holds(turn):
            raise ModelError("this answer was closed, or ended by a newer one of the same model; "
                             "answers asked for with wait=True wait for one another")

    def _check_length(self, text: Any) -> None:
        """Raises ModelError for a text that is far too long, as it takes memory to tell by how much."""
        if isinstance(text, str) and len(text) > _LONGEST_TOKEN * self._session.context:
            raise ModelError(f"the prompt has {len(text)} characters, far more than fit in a context of "
                             f"{self._session.context} tokens; shorten it or raise the context")

    def _flash(self) -> tuple[int, float]:
        stream = self._engine.stream
        return (stream.reading.bytes if stream else 0), self._engine.waited_s

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Generation:
        """Answer a conversation: dicts with `role` (system, user, assistant) and `content`.

        Settings as in `generate`; also how it goes with other answers of the same model, and `wait`.
        Raises TemplateError where the model has no chat template, or its template refuses the messages.
        """
        return self.generate(self.render(messages), **settings)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The token ids of a conversation, as the model's chat template writes it, ready for the next answer.

        Special tokens come from the template alone: their names in messages are text like any other.
        """
        for message in messages:
            self._check_length(message.get("content"))
        text, given = self._template.render(messages)
        self._check_length(text)
        bos = self._token_name(self.tokenizer.bos_token_id)
        begun = bos and text.startswith(bos) and not any(given[:len(bos)])
        return self.tokenizer.encode(text, given=given, add_bos=False if begun else None)

    @cached_property
    def _template(self) -> ChatTemplate:
        """The chat template, compiled once. Raises TemplateError where the model has none."""
        tokenizer = self.tokenizer
        return ChatTemplate(self._text.template, self._token_name(tokenizer.bos_token_id),
                            self._token_name(next(iter(tokenizer.eos_token_ids), None)))

    def _token_name(self, index: int | None) -> str:
        return "" if index is None else self.tokenizer.id_to_token(index) or ""

    def extend(self, tokens: Sequence[int], *, every: bool = False) -> np.ndarray:
        """Compute tokens after those computed since the last `reset`, without sampling; ends the answer under way.

        Returns the logits of the last token, or of every one: float32 of shape (1 or n, vocab_size). Those of every one
        count to the memory budget, which has room for `plan.logit_rows` tokens at once. Raises ModelError.
        """
        wanted = range(len(tokens)) if every else None
        if every and len(tokens) > self.plan.logit_rows:
            raise ModelError(f"the logits of {len(tokens)} tokens take "
                             f"{size_text(4 * len(tokens) * self.header.config.vocab_size)}, and the memory budget "
                             f"has room for {self.plan.logit_rows} at once; ask for so many at a time, or raise it")

        def work(job: Job[np.ndarray]) -> np.ndarray:
            self._turns.end()
            return self._engine.forward(self._session, tokens, wanted, cancel=job.cancel)

        return self._worker.run(work)

    def reset(self) -> None:
        """Forget the tokens computed so far."""
        def work(job: Job[None]) -> None:
            self._turns.end()
            self._session.truncate(0)

        self._worker.run(work)

    def close(self) -> None:
        """End the threads and give the memory back. Waits for a computation under way in another thread."""
        self._turns.close()
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Loaded(NamedTuple):
    bundle: Bundle
    text: Text
    plan: Plan
    file: FlashFile
    session: Session
    engine: Engine


def _open(path: str | os.PathLike[str], library: native.Library, settings: _Settings, opened: ExitStack,
          job: Job[_Loaded]) -> _Loaded:
    """A job: open a bundle, plan, and load; what has been opened is in `opened` at any time."""
    bundle = opened.enter_context(Bundle(path))
    text = read_text(bundle)
    job.check()
    header = bundle.header
    context, kv_type = session_settings(header, settings.context, settings.kv_type)
    planner = Planner(header, process=process_bytes() + Region.promised, context=context, cache_type=kv_type,
                      chunk=settings.chunk, threads=settings.threads)
    allowed = allowance(settings.memory)
    plan = planner.plan(allowed.comfortable, lambda: device_of(bundle.path), most=allowed.most, what=allowed.what)
    job.check()
    file = opened.enter_context(FlashFile(bundle.path))
    session = Session(header.config, context, kv_type)
    opened.callback(session.close)
    engine = Engine(bundle, file, library, plan.placement, chunk=plan.chunk, threads=settings.threads,
                    cache_type=kv_type, progress=job.check)
    opened.callback(engine.close)
    if plan.disk is not None:
        session.touch()
        engine.touch()
    if settings.trace is not None:
        trace = Trace(settings.trace)
        opened.callback(trace.close)
        engine.trace(trace)
    return _Loaded(bundle, text, plan, file, session, engine)
