"""The memory that key-value caches are made of: blocks of PAGE positions of all layers, fixed in number; and those that
have no room there, on flash."""

from collections.abc import Callable, Sequence

import numpy as np

from edgert.errors import ModelError
from edgert.kernels.low_pages import pack
from edgert.kernels.pages import CACHE_TYPES, PAGE, head_layout, page_bytes
from edgert.models.config import Config
from edgert.residency.region import HUGE_PAGE, Region

from .low_blocks import LOW, LowBlocks
from .swap_file import SwapFile


class Pool:
    """Blocks for `positions` positions, rounded up; sessions take them, share them, and give them back.

    A block is PAGE positions of every layer: (layers, key-value heads) of what kernels/pages.py calls a head of a page.
    Who uses one holds it, with others or alone; what several hold is only read. swap: where blocks can be moved out of
    memory to (`have_swap`); what is there has a number from `count` on, and can be held like others. reclaim,
    reclaim_out: called where no block is free, in memory or on flash; whether one has been let go of. Raises ModelError
    for a type that is not known.
    """

    def __init__(self, config: Config, cache_type: str, positions: int) -> None:
        self._config, self.layers, self.cache_type = config, config.num_hidden_layers, cache_type
        self.head = head_layout(checked_type(cache_type), config.head_dim)
        self.page_bytes = page_bytes(cache_type, config.num_key_value_heads, config.head_dim)
        self.block_bytes, self.count = self.layers * self.page_bytes, blocks_of(positions)
        self.reclaim: Callable[[], bool] = lambda: False
        self.reclaim_out: Callable[[], bool] = lambda: False
        # Of huge pages, if a block is no smaller: all of one becomes resident with its first token.
        self._region = Region(self.count * self.block_bytes, f"the cache of {positions} tokens",
                              huge=self.block_bytes >= HUGE_PAGE // 2)
        self.swap: SwapFile | None = None
        self._low: LowBlocks | None = None
        self._holders = [0] * self.count
        self._free = list(reversed(range(self.count)))

    def have_swap(self, swap: SwapFile) -> None:
        """Have a file that blocks can be moved to, and close it together with the pool."""
        self.swap = swap
        self._holders += [0] * swap.slots

    def have_low(self, count: int) -> None:
        """Have room for so many low blocks."""
        self._low = LowBlocks(self.layers, self._config, count)

    @property
    def low(self) -> LowBlocks:
        """What low blocks are in."""
        assert self._low is not None
        return self._low

    def is_low(self, block: int) -> bool:
        """Whether it is a low block (low_blocks.py)."""
        return block >= LOW

    def lower(self, block: int) -> int:
        """A low block made of one that is held, in its place."""
        made = self.low.take()
        self.low.heads(made)[:] = pack(self.heads(block), self._config.head_dim)
        self.give_back(block)
        return made

    def ready(self) -> bool:
        """Whether there is a block that nobody holds."""
        return bool(self._free) or self.reclaim()

    def take(self) -> int:
        """A block that nobody holds, whatever it contains. Raises ModelError where there is none."""
        if not self.ready():
            raise ModelError(f"the key-value cache is full: all {self.count} blocks of {PAGE} tokens are in use")
        block = self._free.pop()
        self._holders[block] = 1
        return block

    def share(self, block: int) -> None:
        """Hold a block that somebody holds."""
        self._holders[block] += 1

    def shared(self, block: int) -> bool:
        """Whether several hold it. A low block belongs to one session."""
        return not self.is_low(block) and self._holders[block] > 1

    def alone(self, block: int) -> int:
        """A block with the same contents that nobody else holds, in the place of one that is held; the same, if
        nobody does. Raises ModelError."""
        if not self.shared(block):
            return block
        made = self.take()
        self.copy(block, made)
        self.give_back(block)
        return made

    def give_back(self, block: int) -> None:
        """Hold a block no more."""
        if self.is_low(block):
            self.low.give_back(block)
            return
        self._holders[block] -= 1
        if not self._holders[block]:
            if self.is_out(block):
                assert self.swap is not None
                self.swap.free(self.slot(block))
            else:
                self._free.append(block)

    def is_out(self, block: int) -> bool:
        """Whether it is on flash, not in memory."""
        return self.count <= block < LOW

    def slot(self, block: int) -> int:
        """Where in `swap` a block is that is on flash."""
        return block - self.count

    def copies_out(self, blocks: Sequence[int]) -> list[int]:
        """Blocks on flash with the same contents as these in memory, all at once. Raises ModelError."""
        assert self.swap is not None
        while self.swap.room < len(blocks) and self.reclaim_out():
            pass
        made = [self.count + slot for slot in self.swap.put([self.bytes_of(block) for block in blocks])]
        for block in made:
            self._holders[block] = 1
        return made

    def copies_in(self, blocks: Sequence[int]) -> list[int]:
        """Blocks in memory with the same contents as these on flash, all at once. Raises ModelError."""
        assert self.swap is not None
        made: list[int] = []
        try:
            made += (self.take() for _ in blocks)
            self.swap.take_back([self.slot(block) for block in blocks], [self.bytes_of(block) for block in made])
        except BaseException:
            for block in made:
                self.give_back(block)
            raise
        return made

    def move_out(self, block: int) -> int:
        """A block on flash with the same contents, in the place of one that is held. Raises ModelError."""
        made, = self.copies_out([block])
        self.give_back(block)
        return made

    def move_in(self, block: int) -> int:
        """A block in memory with the same contents, in the place of one that is held. Raises ModelError."""
        if not self.is_out(block):
            return block
        made, = self.copies_in([block])
        self.give_back(block)
        return made

    def bytes_of(self, block: int) -> np.ndarray:
        """What a block contains, wherever it is: uint8 of shape (layers, page_bytes); a copy if it is on flash. Raises
        ModelError."""
        if not self.is_out(block):
            return np.frombuffer(self.view(block), np.uint8).reshape(self.layers, -1)
        assert self.swap is not None
        contents = np.empty((self.layers, self.page_bytes), np.uint8)
        self.swap.take_back([self.slot(block)], [contents])
        return contents

    @property
    def free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._free)

    def pages(self, block: int) -> np.ndarray:
        """Addresses of a block's pages, one for each layer: int64."""
        if self.is_low(block):
            return self.low.pages(block)
        return self._region.address + block * self.block_bytes + self.page_bytes * np.arange(self.layers)

    def view(self, block: int) -> memoryview:
        """A block's bytes."""
        if self.is_low(block):
            return self.low.view(block)
        return self._region.view(block * self.block_bytes, self.block_bytes)

    def heads(self, block: int) -> np.ndarray:
        """What a block contains: an array (layers, key-value heads) of kernels.pages.head_layout."""
        return np.frombuffer(self.view(block), self.head).reshape(self.layers, -1)

    def copy(self, block: int, to: int) -> None:
        """Copy what a block contains."""
        self.heads(to)[:] = self.heads(block)

    def touch(self) -> None:
        """Make all of it resident now; what it contains is lost."""
        self._region.touch()
        if self._low is not None:
            self._low.region.touch()

    def close(self) -> None:
        if self.swap is not None:
            self.swap.close()
        if self._low is not None:
            self._low.region.close()
        self._region.close()


def blocks_of(positions: int) -> int:
    """How many blocks so many positions take."""
    return -(-positions // PAGE)


def checked_type(cache_type: str) -> str:
    """Raises ModelError for a type that no cache has."""
    if cache_type not in CACHE_TYPES:
        raise ModelError(f"cache type {cache_type!r} is not known; known: {', '.join(CACHE_TYPES)}")
    return cache_type


def pool_bytes(config: Config, positions: int, cache_type: str) -> int:
    """Bytes of a pool for so many positions."""
    return blocks_of(positions) * block_bytes(config, cache_type)


def block_bytes(config: Config, cache_type: str) -> int:
    """Bytes of a block."""
    return config.num_hidden_layers * page_bytes(cache_type, config.num_key_value_heads, config.head_dim)
