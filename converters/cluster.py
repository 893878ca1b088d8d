"""Layers on the workers of a Ray cluster: `edgert convert --cluster`.

Layers are independent of each other once it is known what their matrices get to see. So this process goes through the
calibration text, layer by layer, which cannot be done otherwise, and gives each layer to a worker with what the text
has become before it; the worker goes through that layer again, rounds and packs it. What comes back is written here, in
order. A worker that dies costs its layer, which another does again. Embedding, output head and last norm are done here.

Workers have the same edgert installed, and find the source at the same path. What they read is compared with what
was hashed here (source_file.py).
"""

import logging
import os
import re
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgert.bundle import Header
from edgert.errors import ClusterError
from edgert.models.tensors import TensorSpec

from .calibration import State
from .pieces import Piece, Pieces
from .rounding import Importances
from .source import Source

_REACHED_S = 10


class ClusterPieces(Pieces):
    """The pieces of a bundle, those of layers computed on a cluster.

    windows: what is calibrated with, None for nothing; importances: as for `Pieces`, with the same windows.
    """

    def __init__(self, ray: Any, source: Source, header: Header, importances: Importances | None,
                 windows: np.ndarray | None) -> None:
        super().__init__(source, header, importances)
        self._ray = ray
        self._layers = _by_layer(source)
        self._remote = ray.remote(max_retries=-1)(_pieces_of_layer)
        self._shared = ray.put((source, header, windows))
        self._at_once = max(int(ray.cluster_resources().get("CPU", 1)), 1) + 1
        """Layers that are given away and not yet written."""
        self._given: deque[tuple[int, Any]] = deque()
        self._states: dict[int, State] = {}
        """Of the layers that are given away: the state before them."""
        self._here: dict[str, list[Piece]] = {}
        self._next = 0

    def of(self, spec: TensorSpec) -> Iterator[Piece]:
        if spec.layer is None:
            yield from super().of(spec)
            return
        if spec.name not in self._here:
            self._next = max(self._next, spec.layer)
            self._give()
            _, given = self._given.popleft()
            with failures(self._ray):
                self._here, activity = self._ray.get(given)
            if activity is not None:
                self.header.activity[spec.layer] = activity
        yield from self._here.pop(spec.name)

    def state(self) -> State | None:
        """Before the first layer that is not yet here; None within a layer."""
        if self._here:
            return None
        return self._states[self._given[0][0]] if self._given else super().state()

    def _give(self) -> None:
        """Give away the layers that come next, as many as there may be."""
        while self._next < len(self._layers) and len(self._given) < self._at_once:
            layer = self._next
            state = super().state()
            assert state is not None
            self._states = {given: self._states[given] for given, _ in self._given} | {layer: state}
            with failures(self._ray):
                self._given.append((layer, self._remote.remote(self._shared, layer, state)))
            if self.importances:
                self.importances.pass_by(self._layers[layer])
            self._next += 1


def _pieces_of_layer(shared: tuple[Source, Header, np.ndarray | None], layer: int,
                     state: State) -> tuple[dict[str, list[Piece]], list[int] | None]:
    """On a worker: a layer's pieces by tensor, and its activity, where it has one. Raises SourceError."""
    source, header, windows = shared
    pieces = Pieces(source, header, None if windows is None else Importances(source, header, windows))
    pieces.go_on(state)
    made = {spec.name: list(pieces.of(spec)) for spec in _by_layer(source)[layer]}
    return made, header.activity[layer] if header.config.selective else None


def _by_layer(source: Source) -> list[list[TensorSpec]]:
    layers: list[list[TensorSpec]] = [[] for _ in range(source.config.num_hidden_layers)]
    for spec in source.config.tensors():
        if spec.layer is not None:
            layers[spec.layer].append(spec)
    return layers


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ray, connected to the cluster at an address as Ray has it. Without one it is that of $RAY_ADDRESS, or
    one on this machine, which is started where there is none. Raises ClusterError."""
    _require_reachable(address or os.environ.get("RAY_ADDRESS", ""))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    before = signal.getsignal(signal.SIGTERM)
    try:
        import ray
    except ImportError as error:
        raise ClusterError("--cluster needs Ray: pip install 'edgert[cluster]'; "
                           f"importing it failed: {error}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray takes it when it is imported
    try:
        with failures(ray):
            ray.init(address or None, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
        yield ray
    finally:
        ray.shutdown()


def _require_reachable(address: str) -> None:
    """Raises ClusterError where nothing answers at HOST:PORT or ray://HOST:PORT; Ray itself tries that for minutes."""
    if (match := re.fullmatch(r"(?:ray://)?([\w.-]+):(\d{1,5})", address)) is None:
        return
    try:
        socket.create_connection((match[1], int(match[2])), _REACHED_S).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise ClusterError(f"the Ray cluster at {address} cannot be reached: {why}; start it, or give another "
                           "address") from None


@contextmanager
def failures(ray: Any) -> Iterator[None]:
    """Turns what Ray raises into what the worker raised, or ClusterError."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except (ray.exceptions.RayError, ConnectionError, ValueError, RuntimeError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ClusterError(f"the Ray cluster cannot be used: {first}") from None
