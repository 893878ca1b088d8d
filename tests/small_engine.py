"""Engines of small models, with as much of the weights in memory as a test wants."""

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert import opening
from edgert.bundle import Bundle
from edgert.bundle.header import EMBEDDING, HEAD, RESIDENT, LeftOut
from edgert.engine.buffers import LEAST_ROWS
from edgert.engine.engine import Engine
from edgert.engine.retention import POLICIES, STOP, Policy
from edgert.engine.session import Session
from edgert.engine.worker import CancelledError
from edgert.kernels import native
from edgert.kernels.records import CANCELLED
from edgert.memory.plan import Plan, Planner
from edgert.memory.window import slots_in, window_bytes
from edgert.residency.device import Device
from edgert.residency.file import FlashFile
from edgert.residency.placement import Placement

KEEP_ALL = 1.0


def plan(bundle: Bundle, *, keep: float, threads: int, chunk: int, cache_type: str, chunk_bytes: int,
         readers: int, embedding: float, attention: float | None = None, details: float | None = None,
         head: float | None = None, rows: int = LEAST_ROWS, context: int = 64) -> Plan:
    """The plan that pins about a share `keep` of what can be streamed, and `embedding` of an embedding of its own.

    attention, details, head: the share of each attention matrix, of the details of each layer (no more than its bases),
    and of the output head, if it is another. rows: of logits, computed at once.
    """
    planner = Planner(bundle.header, process=0, context=context, cache_type=cache_type, chunk=chunk, threads=threads)
    everything = replace(planner.plan(planner.whole, lambda: device), verify_rows=rows)
    device = Device("a test's", True, chunk_bytes, readers, 1e9, 1e-4, [])
    of_embedding = int(embedding * bundle.units[EMBEDDING].count) if embedding else 0
    shares = {layout.name: keep for layout in bundle.header.streamable()}
    for layout in bundle.header.streamable():
        if layout.section == RESIDENT and attention is not None:
            shares[layout.name] = attention
    for n in bundle.header.neurons:
        if n.details is not None and details is not None:
            shares[n.details] = min(details, keep)
    shares[HEAD] = keep if head is None else head
    pinned = {layout.name: int(shares[layout.name] * layout.count) for layout in bundle.header.streamable()}
    window = {}
    if bundle.header.config.selective:
        for n in bundle.header.neurons:
            pinned[n.section] = 0
        window = slots_in(bundle.header, int(keep * window_bytes(slots_in(bundle.header, 1 << 40))))
    if min(shares.values()) >= KEEP_ALL:
        return replace(everything, placement=replace(everything.placement, embedding=of_embedding))
    bases = any(pinned[n.section] < n.groups for n in bundle.header.neurons if n.details)
    return replace(everything, disk=device, placement=Placement(
        pinned, of_embedding, chunk_bytes, readers, planner.slots(device, bases=bases), planner.slot_bytes(device),
        window))


def use_plan(monkeypatch: pytest.MonkeyPatch, path: Path, *, left_out: LeftOut | None = None, **settings: Any) -> None:
    """Have models of a bundle loaded with the plan of these settings (`plan`), whatever memory there is. left_out: by
    them, where that changes the plan."""
    class Planner:
        def __init__(self, header: object, **_: Any) -> None:
            pass

        def plan(self, *arguments: object, **_: object) -> Plan:
            with Bundle(path) as opened:
                if left_out is not None:
                    opened.load_for(settings["context"], left_out)
                return plan(opened, threads=2, cache_type="f16", chunk_bytes=1 << 13, readers=2, embedding=0.0,
                            **settings)

    monkeypatch.setattr(opening, "Planner", Planner)


def make_engine(bundle: Bundle, *, threads: int = 2, chunk: int = 4, cache_type: str = "f32", keep: float = KEEP_ALL,
                chunk_bytes: int = 1 << 14, readers: int = 2, embedding: float = 0.0, attention: float | None = None,
                details: float | None = None, head: float | None = None, slots: int | None = None,
                rows: int = LEAST_ROWS, context: int = 64, file: FlashFile | None = None,
                policy: Policy = POLICIES[STOP], left_out: LeftOut | None = None) -> Engine:
    """A loaded engine; `file` reads the bundle, by default directly. slots: if other than planned. left_out: experts or
    neurons that are."""
    if left_out is not None:
        bundle = copy.copy(bundle)
        bundle.load_for(context, left_out)
    made = plan(bundle, keep=keep, threads=threads, chunk=chunk, cache_type=cache_type, chunk_bytes=chunk_bytes,
                readers=readers, embedding=embedding, attention=attention, details=details, head=head,
                rows=rows, context=context)
    if slots is not None:
        made = replace(made, placement=replace(made.placement, slots=slots))
    return Engine(bundle, file or FlashFile(bundle.path), native.library(), made.placement, chunk=made.chunk,
                  threads=threads, context=context, cache_type=cache_type, logit_rows=made.verify_rows, policy=policy)


def cancelled_again_and_again(engine: Engine, source: Any, tokens: Sequence[int], expected: np.ndarray) -> int:
    """Compute a token after another, each until it is not cancelled: often it is, when `source` (OnDemand) has just
    planned what to read. Asserts that the logits are those expected, to the bit. Returns how often it was."""
    session, cancel, cancelled = Session(engine.config, 64, "f32"), np.zeros(1, np.int64), 0
    plan, chance = source._plan, random.Random(0)

    def cancelling(layer: Any) -> None:
        plan(layer)
        if chance.random() < 0.6:
            cancel[0] = CANCELLED

    source._plan = cancelling
    for number, token in enumerate(tokens):
        while True:
            try:
                logits = engine.forward(session, [token], cancel=cancel)
                break
            except CancelledError:
                cancelled += 1
                cancel[0] = 0
        assert np.array_equal(logits.view(np.int32)[0], expected[number])
    return cancelled
