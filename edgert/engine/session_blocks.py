"""The blocks of a pool that a session has: where the kernels find their pages, and which of them are on flash."""

import numpy as np

from edgert.kernels.pages import PAGE
from edgert.models.config import Config

from .page_stream import PageStream
from .pool import Pool
from .window_pages import SessionWindows, blocks_of, longest_window


class SessionBlocks:
    """ids: the blocks, in order. pages: addresses of their pages, int64 (layers, blocks of `context` tokens). windows:
    which pages of layers with a window the session needs; None where they are part of every block. stream: as of
    Session. `held` is everywhere how many positions the session holds.
    """

    def __init__(self, config: Config, context: int, pool: Pool, stream: PageStream | None) -> None:
        self.pool, self.stream = pool, stream
        self.ids: list[int] = []
        self.pages = np.zeros((config.num_hidden_layers, blocks_of(context)), np.int64)
        self.windows = None if pool.windows is None else SessionWindows(pool.windows, longest_window(config))
        self._resident = np.zeros((config.num_hidden_layers, 0), np.int64)

    def low(self) -> int:
        """How many are low ones: the first."""
        return sum(map(self.pool.is_low, self.ids))

    @property
    def bytes_from_flash(self) -> int:
        """Of keys and values that were read for computing."""
        return 0 if self.stream is None else self.stream.bytes

    def start_reading(self) -> PageStream | None:
        """Have what is on flash read for a pass, layer after layer; None if nothing is."""
        slots = [self.pool.slot(block) for block in self.ids if self.pool.is_out(block)]
        if self.stream is None or not slots:
            return None
        self.stream.begin(slots)
        return self.stream

    def in_memory(self) -> tuple[np.ndarray, int]:
        """`pages` without those of blocks that are on flash, valid until it is called again; and how many these are."""
        out = self._out()
        if not out:
            return self.pages, 0
        self._resident = np.ascontiguousarray(np.delete(self.pages, out, 1))
        if self.windows is not None:  # those of the latest positions are all there
            self._resident[self.pool.windowed] = self.pages[self.pool.windowed, len(out):]
        return self._resident, len(out)

    def _out(self) -> list[int]:
        """The numbers of those that are on flash."""
        return [number for number, block in enumerate(self.ids) if self.pool.is_out(block)]

    def reserve(self, held: int, positions: int) -> None:
        """Have blocks for so many positions, and alone those that will be written. Raises ModelError."""
        for number in range(held // PAGE, blocks_of(positions)):
            if number == len(self.ids):
                self.ids.append(self.take(held))
            elif self.pool.shared(self.ids[number]):
                self._make_ready(held)
                self._put(number, self.pool.alone(self.ids[number]))
            else:
                continue
            self.pages[:, number] = self.pool.pages(self.ids[number])

    def reserve_alone(self) -> None:
        """Have no block with others. Raises ModelError."""
        for number, block in enumerate(self.ids):
            self._put(number, self.pool.alone(block))
            self.pages[:, number] = self.pool.pages(self.ids[number])

    def take(self, held: int) -> int:
        """A block of the pool; for it one of the session's may go to flash. Raises ModelError."""
        self._make_ready(held)
        return self.pool.take()

    def append(self, block: int) -> None:
        """Have one more, which the session holds from now on; one that is on flash gets its place from `settle`."""
        if not self.pool.is_out(block):
            self.pages[:, len(self.ids)] = self.pool.pages(block)
        self.ids.append(block)

    def drop(self, number: int) -> None:
        """Give one back, and have those after it in its place."""
        self.give_back(number)
        self.pages[:, number:-1] = self.pages[:, number + 1:]

    def lower(self, number: int) -> None:
        """Make a low block of one, the last of those."""
        low, pages = self.low(), self.pages
        block = self.pool.lower(self.ids.pop(number))
        self.ids.insert(low, block)
        pages[:, low + 1:number + 1] = pages[:, low:number].copy()
        pages[:, low] = self.pool.pages(block)

    def give_back(self, number: int) -> None:
        """Hold a block no more."""
        if self.windows is not None and (block := self.ids[number]) in self.windows.blocks:
            self.windows.drop(block)
        self.pool.give_back(self.ids.pop(number))

    def leave(self, used: int) -> None:
        """Have none any more: whoever called this holds the first so many, the others are given back."""
        if self.windows is not None:
            self.windows.change([], [])
        for block in self.ids[used:]:
            self.pool.give_back(block)
        self.ids = []

    def reachable(self, there: list[bool], length: int) -> int:
        """The greatest length, at most this one, after which the session can go on, if it holds blocks of which pages
        of layers with a window are there or not."""
        return length if self.windows is None else self.windows.reachable(there, length)

    def first_needed(self, length: int) -> int:
        """The number of the first block of which it needs these pages to go on after so many tokens."""
        return blocks_of(length) if self.windows is None else self.windows.first(length)

    def need_windows(self, held: int, positions: int, points: tuple[int, ...]) -> None:
        """Have in memory of layers with a window what the next tokens look at, up to so many positions, and what is
        looked at after some are taken back; others may go. points: as of SessionWindows. Raises ModelError."""
        if (windows := self.windows) is None:
            return
        windows.points = points
        first, least = windows.earliest(held), windows.first(held)
        numbers = range(first, blocks_of(max(positions, held)))
        blocks = [block for number in numbers if windows.pages.there(block := self.ids[number]) or number >= least]
        if blocks == windows.blocks:
            return
        assert all(map(self.pool.has_windows, self.ids[least:blocks_of(held)]))
        for block in blocks:
            windows.pages.touch(block)  # not to go for another one of them
        for block in blocks:
            self.pool.bring_windows(block, block)
        windows.change(blocks, self.ids[:first])
        for number in numbers:
            self.pages[self.pool.windowed, number] = windows.pages.pages(self.ids[number])

    def settle(self, held: int) -> None:
        """After blocks were appended or let go of: have in memory what will be written, and of the latest what there is
        room for. Raises ModelError."""
        if self.stream is None:
            return
        needed = held // PAGE if held % PAGE else -1
        for number in range(blocks_of(held) - 1, -1, -1):
            if self.pool.is_out(self.ids[number]):
                if number == needed:
                    self._make_ready(held)
                elif not self.pool.free:
                    continue
                self._put(number, self.pool.move_in(self.ids[number]))
        self._place_pages()

    def _make_ready(self, held: int) -> None:
        """Have a block in the pool that nobody holds, if the session can do something for that. Raises ModelError."""
        while self.stream is not None and not self.pool.ready():
            whole = min(held // PAGE, len(self.ids))
            here = [number for number in range(1, whole) if not self.pool.is_out(self.ids[number])]
            if not here:
                return
            self._put(here[0], self.pool.move_out(self.ids[here[0]]))
            self._place_pages()

    def _put(self, number: int, block: int) -> None:
        """Have another block with the same contents in a block's place."""
        if self.windows is not None:
            self.windows.replace(self.ids[number], block)
        self.ids[number] = block

    def _place_pages(self) -> None:
        """Tell the kernels where blocks are that were moved."""
        assert self.stream is not None
        for number, block in enumerate(self.ids):
            self.pages[:, number] = self.pool.pages(block)
        out = self._out()
        self.pages[np.ix_(self.pool.whole, np.array(out, np.int64))] = self.stream.addresses(len(out))
