"""A trace of computing and reading, in Chrome's trace event format (chrome://tracing, ui.perfetto.dev)."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgert.errors import ModelError
from edgert.kernels import records
from edgert.kernels.records import Code
from edgert.residency.source import Read

_COMPUTING = "computing"
_NAMES = {Code.EMBEDDING: "embedding", Code.LINEAR: "matrices", Code.NORM: "norm", Code.QUANTIZE: "quantize",
          Code.ROPE: "rotary positions", Code.ATTENTION: "attention", Code.COMBINE: "attention, parts",
          Code.UP: "gate and up", Code.DOWN: "down", Code.NEURONS: "feed-forward", Code.GATHER: "feed-forward, sums",
          Code.RELEASE: "release", Code.LAYER_NORM: "norm", Code.LEARNED_POSITIONS: "positions",
          Code.CHOOSE: "choosing neurons", Code.ASK: "asking for neurons",
          Code.SPARSE_ONE: "feed-forward", Code.SPARSE_GATHER: "feed-forward, sums", Code.SPARSE_UP: "up",
          Code.SPARSE_DOWN: "down", Code.MASSES: "attention paid",
          Code.ROUTE: "choosing experts", Code.DISPATCH: "asking for experts", Code.EXPERTS: "experts",
          Code.EXPERT_SUMS: "experts, sums", Code.GLU: "gated unit",
          Code.HEAD_NORMS: "norm", Code.ADD: "residual stream", Code.SCALE: "output head, scale"}
_OF_SELECTED = records.LINEAR.of_selected // 8
_LAYER = records.ROPE.layer // 8
_RESIDENT = records.CHOOSE.resident // 8
_DETAILS, _DETAIL_COUNTERS = records.NEURONS.details // 8, records.NEURONS.detail_counters // 8


def _is_draft(program: list[list[int]]) -> bool:
    """Whether a program takes of the neurons, or of their details, what is there: with no counters to wait with."""
    return any((record[0] == Code.NEURONS and record[_DETAILS] and not record[_DETAIL_COUNTERS])
               or (record[0] == Code.CHOOSE and record[_RESIDENT]) for record in program)


class Trace:
    """Writes events to a file as they come. Raises ModelError where the file cannot be written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._lanes: list[str] = []
        self._lock = threading.Lock()
        with self._refusals():
            self._file = self._path.open("w", encoding="utf-8")
        self._file.write('{"displayTimeUnit": "ms", "traceEvents": [')

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ModelError(f"{self._path}: the trace cannot be written: "
                             f"{(error.strerror or str(error)).lower()}") from None

    def _write(self, event: dict[str, Any]) -> None:
        self._file.write(json.dumps(event) + ",\n")

    def _add(self, lane: str, name: str, start_s: float, end_s: float, **arguments: Any) -> None:
        with self._lock, self._refusals():
            if lane not in self._lanes:
                self._lanes.append(lane)
                self._write({"name": "thread_name", "ph": "M", "pid": 1, "tid": len(self._lanes) - 1,
                             "args": {"name": lane}})
            self._write({"name": name, "ph": "X", "pid": 1, "tid": self._lanes.index(lane), "ts": 1e6 * start_s,
                         "dur": 1e6 * (end_s - start_s), "args": arguments})

    def computed(self, program: np.ndarray, times: np.ndarray, tokens: int) -> None:
        """A program was run. times: int64 of shape (operations + 1,), nanoseconds as clock_gettime gives them."""
        seconds, operations = times / 1e9, program.tolist()
        name = "draft" if _is_draft(operations) else f"{tokens} token{'s' * (tokens > 1)}"
        self._add("passes", name, seconds[0], seconds[-1])
        layer = last = 0
        for i, record in enumerate(operations):
            if not times[i + 1]:  # done together with those that follow
                continue
            if record[0] == Code.ROPE:
                layer = record[_LAYER]
            head = record[0] == Code.LINEAR and record[_OF_SELECTED]
            self._add(_COMPUTING, "output head" if head else _NAMES[Code(record[0])], seconds[last], seconds[i + 1],
                      layer=layer)
            last = i + 1

    def read(self, read: Read) -> None:
        """Weights were read and checked (residency.source.ReadHook)."""
        lane = f"reader {read.reader}"
        self._add(lane, read.name, read.started, read.ended, bytes=read.length, offset=read.offset,
                  **({"part": read.part} if read.part else {}))
        self._add(lane, "check", read.ended, read.checked)

    def close(self) -> None:
        """End the file."""
        with self._refusals():
            self._file.write('{"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "edgert"}}]}\n')
            self._file.close()
