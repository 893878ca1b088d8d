"""What a loaded model is doing, for a dashboard: what memory is used for, what is read. Nothing here waits for it."""

import ctypes
import gc
from dataclasses import dataclass
from pathlib import Path

import psutil

from .answering import LanguageModel
from .memory.budget import process_bytes
from .model import Model
from .residency.source import ExpertCounts, Read
from .text.tokenizer import return_freed_memory

_M_MMAP_THRESHOLD = -3
_OWN_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Flash:
    """read: bytes since the model was loaded. bandwidth: bytes per second of the disk, as measured; None where all
    weights are in memory. reading: the layer that was read last; None where nothing was."""

    read: int
    bandwidth: float | None
    reading: int | None


class Watch:
    """Looks at one model, and at this process.

    budget, parts: the memory plan's. smallest, whole: the smallest budgets that work, and with which nothing is read
    from flash, in bytes. pinned: of each layer's weights, the share that stays in memory. memory_total: bytes that the
    machine has. left_out: as `Model.left_out`; of_experts: whether it would be experts. reads: whether to follow what
    is read; the model must then have no trace.
    """

    def __init__(self, model: LanguageModel, *, reads: bool = True) -> None:
        self.budget, self.parts = model.plan.budget, model.plan.parts
        self.threads, self.context = model.threads, model.context
        self.smallest, self.whole = model.budgets()
        self.pinned = _pinned_shares(model) if isinstance(model, Model) else []
        self.memory_total = int(psutil.virtual_memory().total)
        self.left_out = model.left_out if isinstance(model, Model) else None
        self.of_experts = isinstance(model, Model) and model.header.config.experts > 0
        self._bandwidth = model.plan.disk.bandwidth if model.plan.disk is not None else None
        self._layers = _layer_of(model) if isinstance(model, Model) else {}
        self._model: LanguageModel | None = model
        self._read_bytes, self._last_read = 0, ""
        self._experts: ExpertCounts | None = None
        if reads and isinstance(model, Model):
            model.follow_reads(self._read)

    def _read(self, read: Read) -> None:
        self._last_read = read.name

    @property
    def experts(self) -> ExpertCounts | None:
        """As `Model.expert_counts`."""
        if isinstance(self._model, Model):
            self._experts = self._model.expert_counts
        return self._experts

    @property
    def flash(self) -> Flash:
        model = self._model
        return Flash(self._read_bytes if model is None else model.read_bytes, self._bandwidth,
                     self._layers.get(self._last_read))

    @property
    def beside(self) -> int:
        """Bytes that other processes use for the model now."""
        return 0 if self._model is None else self._model.beside

    def let_go(self) -> None:
        """Look at the model no more, which is about to be closed; what was seen last stays."""
        if self._model is not None:
            self._read_bytes, self._experts, self._model = self._model.read_bytes, self.experts, None


def _layer_of(model: Model) -> dict[str, int]:
    """The layer that what is read belongs to, by name (header.UnitLayout)."""
    header = model.header
    layers = {spec.name: spec.layer for spec in header.config.tensors() if spec.layer is not None}
    return layers | {section: layer for layer, n in enumerate(header.neurons, header.config.dense_layers)
                     for section, _ in n.parts()}


def _pinned_shares(model: Model) -> list[float]:
    header, placement, layers = model.header, model.plan.placement, _layer_of(model)
    total = [0] * header.config.num_hidden_layers
    pinned = [0] * len(total)
    for layout in header.streamable():
        if (layer := layers.get(layout.name)) is None:  # the output head
            continue
        total[layer] += layout.length
        pinned[layer] += layout.length - layout.bytes_of(placement.pinned.get(layout.name, 0))
    if placement.window:  # neurons come and go: there is room for this share of all
        room = sum(size * count for size, count in placement.window.items()) / len(total)
        pinned = [min(here + int(room), whole) for here, whole in zip(pinned, total, strict=True)]
    return [round(here / whole, 4) if whole else 1.0 for here, whole in zip(pinned, total, strict=True)]


def map_large_blocks() -> None:
    """Have blocks of 1 MiB and more be mapped and unmapped one by one, in this process from now on.

    By itself glibc takes ever larger blocks out of its heaps, and gives the top of a thread's heap never back: after
    the logits of one scored text 28 MiB that the next model of this process cannot have.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def give_memory_back() -> None:
    """Give what is not in use any more back to the system, such as what a closed model leaves in Python."""
    gc.collect()
    return_freed_memory()


def used_bytes(watch: Watch | None = None) -> int:
    """The memory that this process uses, as the kernel counts it: of its control group, without cache that can be
    dropped, where it has one for itself; else what is resident. watch: also what is used beside it for that model."""
    return _own_bytes() + (0 if watch is None else watch.beside)


def _own_bytes() -> int:
    try:
        group = _OWN_GROUP / Path("/proc/self/cgroup").read_text().partition("::/")[2].strip()
        if group != _OWN_GROUP and len((group / "cgroup.procs").read_text().split()) == 1:
            fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return int((group / "memory.current").read_text()) - int(fields["inactive_file"])
    except (OSError, ValueError, KeyError):
        pass
    return process_bytes()
