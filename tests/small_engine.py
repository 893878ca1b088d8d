"""Engines of small models, with as much of the weights in memory as a test wants."""

from dataclasses import replace

from edgert.bundle import Bundle
from edgert.bundle.header import EMBEDDING, RESIDENT
from edgert.engine.engine import Engine
from edgert.kernels import native
from edgert.memory.plan import Plan, Planner
from edgert.residency.device import Device
from edgert.residency.file import FlashFile
from edgert.residency.placement import Placement

KEEP_ALL = 1.0


def plan(bundle: Bundle, *, keep: float, threads: int, chunk: int, cache_type: str, chunk_bytes: int,
         readers: int, embedding: float, attention: float | None = None, context: int = 64) -> Plan:
    """The plan that pins about a share `keep` of what can be streamed, and `embedding` of an embedding of its own.

    attention: the share of each attention matrix, if it is another.
    """
    planner = Planner(bundle.header, process=0, context=context, cache_type=cache_type, chunk=chunk, threads=threads)
    everything = planner.plan(planner.whole, lambda: device)
    device = Device("a test's", True, chunk_bytes, readers, 1e9, 1e-4, [])
    rows = int(embedding * bundle.units[EMBEDDING].count) if embedding else 0
    if keep >= KEEP_ALL:
        return replace(everything, placement=replace(everything.placement, embedding=rows))
    of_attention = keep if attention is None else attention
    pinned = {layout.name: int((of_attention if layout.section == RESIDENT else keep) * layout.count)
              for layout in bundle.header.streamable()}
    return replace(everything, disk=device, placement=Placement(
        pinned, rows, chunk_bytes, readers, planner.slots(device, bases=True), planner.slot_bytes(device)))


def make_engine(bundle: Bundle, *, threads: int = 2, chunk: int = 4, cache_type: str = "f32", keep: float = KEEP_ALL,
                chunk_bytes: int = 1 << 14, readers: int = 2, embedding: float = 0.0, attention: float | None = None,
                slots: int | None = None, context: int = 64, file: FlashFile | None = None) -> Engine:
    """A loaded engine; `file` reads the bundle, by default directly. slots: if other than planned."""
    made = plan(bundle, keep=keep, threads=threads, chunk=chunk, cache_type=cache_type, chunk_bytes=chunk_bytes,
                readers=readers, embedding=embedding, attention=attention, context=context)
    if slots is not None:
        made = replace(made, placement=replace(made.placement, slots=slots))
    return Engine(bundle, file or FlashFile(bundle.path), native.library(), made.placement, chunk=made.chunk,
                  threads=threads, context=context, cache_type=cache_type, logit_rows=made.verify_rows)
