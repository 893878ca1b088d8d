"""Opening a model: settings with their defaults, the memory plan, and loading what it says."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

from .bundle import Bundle
from .bundle.header import CHAT_TEMPLATE, TOKENIZER, Header, LeftOut
from .engine.engine import Engine
from .engine.page_stream import PageStream
from .engine.pool import Pool
from .engine.prefixes import Prefixes
from .engine.retention import FLASH, MIXED, POLICIES, STOP, Policy, parse_policy
from .engine.session import Session, check_session
from .engine.swap_file import SwapFile
from .engine.tracing import Trace
from .engine.worker import Job
from .errors import BundleError, EdgertError, ModelError
from .generation.grammar import PARSER_BYTES, Grammars
from .kernels import native
from .kernels.native import cache_folder
from .memory.budget import allowance, process_bytes
from .memory.cache_room import CacheRoom, cache_room, context_in
from .memory.plan import Plan, Planner
from .residency.device import device_of
from .residency.file import FlashFile
from .residency.region import Region
from .speculation.speculator import OFF
from .text.tokenizer import Tokenizer

DEFAULT_CONTEXT = 4096
MOST_PARALLEL = 16
"""Answers at once."""
CompileProgress = Callable[[int, int, str], None]


def session_settings(header: Header, context: int | None, kv_type: str | None, kv_memory: int | None,
                     kv_policy: str | None, chunk: int, parallel: int) -> tuple[int, str]:
    """The context length and the cache's element type, with defaults in place of None. chunk: tokens at once. parallel:
    of how many answers at once. Raises ModelError."""
    if not 1 <= parallel <= MOST_PARALLEL:
        raise ModelError(f"parallel is {parallel}; it goes from 1 to {MOST_PARALLEL}")
    quantized = header.quantization.get("preset") != "f32"
    if kv_policy == MIXED and kv_type not in (None, "q8"):
        raise ModelError(f"the cache policy {MIXED} goes with --kv-type q8, not {kv_type}")
    usual = "q8" if kv_policy == MIXED else "f16" if quantized else "f32"
    # A context for which positions change has to be asked for: no budget is to choose it.
    kv_type, most = kv_type or usual, header.config.for_context(1).max_position_embeddings
    if context is None and kv_memory is not None and kv_policy not in (FLASH, MIXED):
        policy = POLICIES.get(kv_policy or STOP, POLICIES[STOP])  # one that is not known is refused soon
        context = max(min(context_in(header.config, kv_type, kv_memory, policy, chunk, parallel), most), 1)
    elif context is None:
        context = min(DEFAULT_CONTEXT, most)
    check_session(header.config, context, kv_type)
    return context, kv_type


def plan_cache(header: Header, policy: Policy, *, process: int, context: int, cache_type: str, chunk: int, threads: int,
               memory: int | None, budget: int, parallel: int, embeddings: int = 0,
               drafting: bool = True) -> tuple[CacheRoom, Planner]:
    """Where the cache is, and what plans everything else around it. memory: bytes that the cache shall take, None for
    what is best with this budget; the rest as of Planner and CacheRoom. Raises ModelError."""
    def planner(room: CacheRoom) -> Planner:
        return Planner(header, process=process, context=room.context, cache_type=cache_type, chunk=chunk,
                       threads=threads, embeddings=embeddings, drafting=drafting, observes=policy.observes, room=room)

    room = cache_room(header.config, cache_type, context, policy, chunk, memory, budget, planner, parallel=parallel)
    return room, planner(room)


class Text(NamedTuple):
    """A bundle's tokenizer and chat template. template: None if the bundle has none."""

    tokenizer: Tokenizer
    template: str | None


def load_library(compile_progress: CompileProgress = lambda number, count, name: None) -> native.Library:
    """Load the kernels for this machine, compiling them first if need be. Raises EdgertError."""
    try:
        return native.library(progress=compile_progress)
    except (ValueError, native.CompilationError) as error:
        raise EdgertError(str(error)) from None


def read_text(bundle: Bundle) -> Text:
    """Read tokenizer and chat template of a bundle. Raises EdgertError."""
    generation = bundle.header.generation
    tokenizer = Tokenizer.from_json(bundle.read_section(TOKENIZER), generation["bos_token_id"],
                                    generation["eos_token_ids"], generation["add_bos_token"])
    return Text(tokenizer, template_text(bundle))


def template_text(bundle: Bundle) -> str | None:
    """A bundle's chat template, None if it has none. Raises BundleError."""
    if CHAT_TEMPLATE not in bundle.header.sections:
        return None
    try:
        return bundle.read_section(CHAT_TEMPLATE).decode()
    except UnicodeDecodeError:
        raise BundleError(f"{bundle.path}: the chat template is not UTF-8 text; convert the model again") from None


@dataclass(frozen=True)
class Settings:
    """The arguments of `load`. memory, kv_memory: bytes. context, kv_type: None for the default."""

    memory: int | None
    threads: int
    context: int | None
    chunk: int
    kv_type: str | None
    kv_policy: str
    kv_memory: int | None
    speculation: str | int
    parallel: int
    structured: bool
    embeddings: int
    max_loss: float
    trace: str | os.PathLike[str] | None


class Loaded(NamedTuple):
    """sessions: one for each answer that may be computed at once. grammars: None unless structured output was asked
    for. left_out: what experts or neurons are, and what that costs; None for none."""

    bundle: Bundle
    text: Text
    planner: Planner
    plan: Plan
    file: FlashFile
    sessions: list[Session]
    prefixes: Prefixes
    engine: Engine
    grammars: Grammars | None
    left_out: LeftOut | None


def open_model(path: str | os.PathLike[str], library: native.Library, settings: Settings, opened: ExitStack,
               job: Job[Loaded]) -> Loaded:
    """A job: open a bundle, make the memory plan, load. Everything is put into `opened` as soon as it is open."""
    bundle = opened.enter_context(Bundle(path))
    text = read_text(bundle)
    job.check()
    context, kv_type = session_settings(bundle.header, settings.context, settings.kv_type, settings.kv_memory,
                                        settings.kv_policy, settings.chunk, settings.parallel)
    left_out = bundle.header.left_out_for(settings.max_loss)
    bundle.load_for(context, left_out)
    header = bundle.header
    policy = parse_policy(settings.kv_policy, context, header.config)
    grammars = Grammars(text.tokenizer, header.config.vocab_size) if settings.structured else None
    process = process_bytes() + Region.promised + (PARSER_BYTES if settings.structured else 0)
    allowed = allowance(settings.memory)
    room, planner = plan_cache(header, policy, process=process, context=context, cache_type=kv_type,
                               chunk=settings.chunk, threads=settings.threads, memory=settings.kv_memory,
                               budget=allowed.comfortable, parallel=settings.parallel, embeddings=settings.embeddings,
                               drafting=settings.speculation != OFF)
    context = room.context
    plan = planner.plan(allowed.comfortable, lambda: device_of(bundle.path), most=allowed.most, what=allowed.what)
    job.check()
    file = opened.enter_context(FlashFile(bundle.path))
    pool = Pool(header.config, kv_type, room.positions, windowed=room.windowed)
    opened.callback(pool.close)
    if room.low:
        pool.have_low(room.low)
    swap, stream = SwapFile(cache_folder().parent / "swap", pool.layers, pool.page_bytes, room.slots), None
    pool.have_swap(swap)
    if room.flash:
        swap.make()  # now, and not amid an answer, which could not go on without it
        stream = PageStream(swap, room.most_on_flash, plan.placement.readers, plan.placement.chunk_bytes,
                            pool.whole.tolist())
        opened.callback(stream.close)
    sessions = [Session(header.config, context, kv_type, pool, stream, low=room.low) for _ in range(settings.parallel)]
    engine = Engine(bundle, file, library, plan.placement, chunk=plan.chunk, threads=settings.threads, context=context,
                    cache_type=kv_type, logit_rows=plan.verify_rows, policy=policy, progress=job.check)
    opened.callback(engine.close)
    if plan.disk is not None:
        pool.touch()
        engine.touch()
        if stream is not None:
            stream.touch()
    if settings.trace is not None:
        trace = Trace(settings.trace)
        opened.callback(trace.close)
        engine.trace(trace)
    return Loaded(bundle, text, planner, plan, file, sessions, Prefixes(pool), engine, grammars, left_out)
