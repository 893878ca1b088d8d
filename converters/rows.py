"""Some rows of a tensor in a file, as a tensor: what a model has as several and its file as one."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .source import Grid, SourceTensor


def check_rows(start: int, stop: int, rows: int) -> None:
    """Raises IndexError where start to stop is not a range of rows: a mistake of the caller, not of the file."""
    if not 0 <= start <= stop <= rows:
        raise IndexError(f"rows {start} to {stop} of {rows}")


@dataclass
class Rows:
    """A `SourceTensor`: `run` rows of another from `first` on, and so many again after every `step` rows."""

    whole: SourceTensor
    shape: tuple[int, ...]
    first: int
    run: int
    step: int

    def __post_init__(self) -> None:
        self.type_name = self.whole.type_name

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (elements, of a vector) as float32. Raises SourceError."""
        parts = [self.whole.read(*there) for there in self._places(start, stop)]
        return np.concatenate(parts) if parts else self.whole.read(0, 0)

    def grid(self, start: int, stop: int) -> Grid | None:
        """As `SourceTensor.grid`."""
        grids = []
        for there in list(self._places(start, stop)) or [(0, 0)]:
            if (grid := self.whole.grid(*there)) is None:
                return None
            grids.append(grid)
        return Grid(np.concatenate([grid.scale for grid in grids]), np.concatenate([grid.minimum for grid in grids]),
                    grids[0].top)

    def _places(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Where rows start to stop are in the whole tensor: ranges of rows."""
        check_rows(start, stop, self.shape[0])
        while start < stop:
            number, within = divmod(start, self.run)
            count = min(self.run - within, stop - start)
            at = self.first + number * self.step + within
            yield at, at + count
            start += count
