"""The seam between the engine and whatever fills the address table with weights that do not stay in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from edgert.errors import EdgertError, ModelError


@dataclass
class ExpertCounts:
    """How often experts were needed, each once for a pass over the weights; of these were not in memory, nor on their
    way there; were guessed and not in memory, and of these turned out to be needed; were read on a guess. How many
    bytes of them were read."""

    needed: int = 0
    missed: int = 0
    guessed: int = 0
    right: int = 0
    read_ahead: int = 0
    bytes: int = 0


@dataclass
class Reading:
    """How much has been read so far."""

    bytes: int = 0
    seconds: float = 0.0
    """Summed over all that was read at once."""
    experts: ExpertCounts | None = None
    """Where experts are read when they are needed."""


class Read(NamedTuple):
    """One read. Times are in seconds, of the clock that the kernels use too."""

    reader: int
    """The number of the thread that read."""
    name: str
    """Of what was read (header.UnitLayout)."""
    offset: int
    """In the file, of the first of them where there are several."""
    length: int
    """Bytes in all."""
    started: float
    ended: float
    checked: float
    part: str = ""
    """Which one of the experts it is of, and whether that was a guess."""


class Asking(NamedTuple):
    """Addresses of what kernels ask for a layer's neuron groups with (kernels/records.py: Choose); 0 where they do not.
    """

    used: int = 0
    time: int = 0
    asked: int = 0
    semaphore: int = 0
    guessed: int = 0
    """Where it is written down what this layer is guessed to need."""
    asked_ahead: int = 0
    """The same as `asked`, for what is guessed."""
    done: int = 0
    """Of experts, as what follows (kernels/expert_records.py)."""
    slots: int = 0


ReadHook = Callable[[Read], None]


class Source(Protocol):
    """Puts the addresses of weights into the table (table.py) before, or while, the kernels wait for them.

    One computation after another: the layers, then the output head as often as `expect` says. All methods but `fail`
    are called from one thread, and only `fail` while the kernels run.
    """

    @property
    def streams(self) -> bool:
        """Whether any weights come from it."""

    @property
    def freed(self) -> int:
        """Address of the semaphore that a kernel posts when it has lowered a counter to zero; or 0."""

    @property
    def reading(self) -> Reading:
        """What has been read since the model was loaded."""

    def check(self) -> None:
        """Raises the error that ended reading, if one did."""

    def expect(self, heads: int) -> None:
        """Announce what is computed next: the layers, and then the output head `heads` times."""

    def restart(self) -> None:
        """Forget what was expected: it is not going to be computed to its end. Raises what `check` raises."""

    def pause(self) -> None:
        """Until `expect` is called, what computes takes what is there and tells the source nothing: a draft."""

    def fail(self, error: EdgertError) -> None:
        """End all reading, and the kernels' run. `check` raises `error` from now on, unless something failed before."""

    def trace(self, hook: ReadHook) -> None:
        """Call `hook` after every read, from the thread that read."""

    def close(self) -> None:
        """End threads and free memory."""


class AllInMemory:
    """The source where all weights stay in memory: nothing to do."""

    streams = False
    freed = 0
    reading = Reading()

    def check(self) -> None:
        pass

    def expect(self, heads: int) -> None:
        pass

    def restart(self) -> None:
        pass

    def pause(self) -> None:
        pass

    def fail(self, error: EdgertError) -> None:
        raise error

    def trace(self, hook: ReadHook) -> None:
        pass

    def close(self) -> None:
        pass


class Together:
    """Several sources as one, each of other weights; at most one of them wants to know what is freed."""

    streams = True

    def __init__(self, *sources: Source) -> None:
        self._sources = sources
        self.freed = next((source.freed for source in sources if source.freed), 0)

    @property
    def reading(self) -> Reading:
        each = [source.reading for source in self._sources]
        return Reading(sum(reading.bytes for reading in each), sum(reading.seconds for reading in each),
                       next((reading.experts for reading in each if reading.experts is not None), None))

    def check(self) -> None:
        for source in self._sources:
            source.check()

    def expect(self, heads: int) -> None:
        for source in self._sources:
            source.expect(heads)

    def restart(self) -> None:
        for source in self._sources:
            source.restart()

    def pause(self) -> None:
        for source in self._sources:
            source.pause()

    def fail(self, error: EdgertError) -> None:
        for source in self._sources:
            source.fail(error)

    def trace(self, hook: ReadHook) -> None:
        for source in self._sources:
            source.trace(hook)

    def close(self) -> None:
        for source in self._sources:
            source.close()


def no_answer() -> ModelError:
    """The error for a disk that does not answer."""
    return ModelError("the disk does not answer; check it, then load the model again")
