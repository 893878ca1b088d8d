"""Pages of layers that see a window of the latest positions ("Longformer", Beltagy et al. 2020): fewer than the cache
has blocks, as a conversation needs those alone that a position to come may look at.

Others stay while there is room, above all those that a conversation needs to go on where it or another may: at its end,
at a prompt's end, and where two texts part. What is not there is computed again, from where it is.
"""

import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np

from edgert.errors import ModelError
from edgert.kernels.pages import PAGE, page_bytes
from edgert.models.config import Config
from edgert.residency.region import HUGE_PAGE, Region

_BACK = PAGE
"""By how many tokens a session can be truncated at any time: more than are guessed at once."""
_POINTS = 2
"""How many points where a conversation may go on there is room for, beside what sessions need."""


class WindowPages:
    """Room for the pages of `layers` layers in `count` blocks, each page `page_bytes`.

    Sessions *need* some; of the others those go first that no conversation is likely to need again, then those that
    were needed longest ago. leave: called before one goes that is likely to be needed.
    """

    def __init__(self, layers: int, page_bytes: int, count: int) -> None:
        self.layers, self.page_bytes, self.block_bytes, self.count = layers, page_bytes, layers * page_bytes, count
        self.region = Region(count * self.block_bytes, f"{count} blocks of layers with a window",
                             huge=self.block_bytes >= HUGE_PAGE // 2)
        self._places: dict[int, int] = {}
        self._free = list(reversed(range(count)))
        self._needed: Counter[int] = Counter()
        self._worth: dict[int, tuple[bool, int]] = {}
        """Of each block whose pages are there, whether they are likely to be needed again, and when they were last."""
        self._clock = itertools.count(1)
        self.leave: Callable[[int], None] = lambda block: None

    def there(self, block: int) -> bool:
        """Whether a block's pages are there."""
        return block in self._places

    def take(self, block: int) -> None:
        """Have a place for a block's pages, whatever it contains. Raises ModelError if sessions need all others."""
        while not self.there(block) and not self._free:
            others = [other for other in self._places if not self._needed[other]]
            if not others:
                raise ModelError(f"the key-value cache is full: all {self.count} blocks of {PAGE} tokens of layers "
                                 "with a window are in use")
            least = min(others, key=self._worth.__getitem__)
            if self.likely(least):
                self.leave(least)
            self.drop(least)
        if not self.there(block):
            self._places[block] = self._free.pop()
        self.touch(block)

    def likely(self, block: int) -> bool:
        """Whether a block's pages are there, and likely to be needed again, though no session needs them."""
        return self.there(block) and not self._needed[block] and self._worth[block][0]

    def touch(self, block: int) -> None:
        """A block's pages are likely to be needed again: others go before them."""
        if self.there(block):
            self._worth[block] = (True, next(self._clock))

    def need(self, block: int) -> None:
        """A session needs a block's pages, which are there."""
        assert self.there(block)
        self._needed[block] += 1

    def release(self, block: int, *, again: bool) -> None:
        """A session needs them no more. again: whether they are likely to be needed again."""
        self._needed[block] -= 1
        self._worth[block] = (again or self._needed[block] > 0, next(self._clock))

    def drop(self, block: int) -> None:
        """Have a block's pages no more, if they are there. Nobody needs them."""
        if self.there(block):
            assert not self._needed.pop(block, 0)
            self._free.append(self._places.pop(block))
            del self._worth[block]

    def rename(self, block: int, to: int) -> None:
        """What is there of a block is from now on that of another, of which nothing is there."""
        if self.there(block):
            assert not self.there(to)
            self._places[to], self._worth[to] = self._places.pop(block), self._worth.pop(block)
            self._needed[to] = self._needed.pop(block, 0)

    def copy(self, block: int, to: int) -> None:
        """Have what is there of a block also for another one. Raises ModelError."""
        if self.there(block):
            self.take(to)
            self.view(to)[:] = self.view(block)

    def pages(self, block: int) -> np.ndarray:
        """Addresses of a block's pages, one for each layer: int64; 0 if they are not there."""
        if not self.there(block):
            return np.zeros(self.layers, np.int64)
        return self.region.address + self._places[block] * self.block_bytes + self.page_bytes * np.arange(self.layers)

    def view(self, block: int) -> memoryview:
        """The bytes of a block's pages, which are there."""
        return self.region.view(self._places[block] * self.block_bytes, self.block_bytes)


class SessionWindows:
    """Which of these pages a session needs, for windows of up to `window` positions."""

    def __init__(self, pages: WindowPages, window: int) -> None:
        self.pages, self._window = pages, window
        self.blocks: list[int] = []
        """Whose pages the session needs."""
        self.points: tuple[int, ...] = ()
        """Lengths at which a conversation is likely to be gone on with."""

    def first(self, length: int) -> int:
        """The number of the first block that the next token looks at, when a session has this length."""
        return max(length + 1 - self._window, 0) // PAGE

    def earliest(self, length: int) -> int:
        """The same of the first one that a session of this length may need, as it can be truncated."""
        return self.first(max(length - _BACK, 0))

    def likely(self, number: int) -> bool:
        """Whether the pages of the block with this number are needed to go on at one of `points`."""
        return any(self.first(point) <= number < blocks_of(point) for point in self.points)

    def change(self, blocks: list[int], passed: list[int]) -> None:
        """The session needs the pages of these blocks from now on, which are there. passed: its first ones, which it
        has gone past: `points` tell whether their pages are likely to be needed again."""
        rest = {block for number, block in enumerate(passed) if not self.likely(number)}
        for block in blocks:
            self.pages.need(block)
        for block in self.blocks:
            self.pages.release(block, again=block not in rest)
        self.blocks = blocks

    def drop(self, block: int) -> None:
        """The session does not have a block any more."""
        self.blocks = [other for other in self.blocks if other != block]
        self.pages.release(block, again=True)

    def replace(self, block: int, by: int) -> None:
        """Another block with the same contents has taken the place of one, of which it has renamed or copied what is
        there."""
        if block != by and block in self.blocks:
            self.blocks[self.blocks.index(block)] = by
            if self.pages.there(block):
                self.pages.need(by)
                self.pages.release(block, again=True)

    def reachable(self, there: list[bool], length: int) -> int:
        """The greatest length, at most this one, at which all is there that the next token looks at. there: of each
        block, whether its pages are."""
        for last in range(blocks_of(length) - 1, -1, -1):
            reached = min(length, (last + 1) * PAGE)
            if all(there[self.first(reached):last + 1]):
                return reached
        return 0


def blocks_of(positions: int) -> int:
    """How many blocks so many positions take."""
    return -(-positions // PAGE)


def windowed_layers(config: Config) -> list[int]:
    """Numbers of the layers that have a window."""
    return [layer for layer in range(config.num_hidden_layers) if config.window(layer) is not None]


def longest_window(config: Config) -> int:
    """In positions; 0 if no layer has one."""
    return max((config.window(layer) or 0 for layer in range(config.num_hidden_layers)), default=0)


def window_blocks(config: Config, context: int, chunk: int, parallel: int) -> int:
    """For how many blocks there shall be room for pages of layers with a window, where `parallel` sessions compute up
    to `chunk` tokens at once; 0 where that is no less than they take beside all others."""
    window = longest_window(config)
    needed = parallel * (blocks_of(window + _BACK + chunk) + 1) + 1 + _POINTS * (blocks_of(window) + 1)
    return needed if window and needed < parallel * blocks_of(context) else 0


def windowed_block_bytes(config: Config, cache_type: str) -> int:
    """Bytes of the pages of layers with a window in a block."""
    return len(windowed_layers(config)) * page_bytes(cache_type, config.num_key_value_heads, config.head_dim)
