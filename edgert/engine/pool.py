"""The memory that key-value caches are made of: blocks of PAGE positions of all layers, fixed in number; and those that
have no room there, on flash."""

from collections.abc import Callable, Sequence

import numpy as np

from edgert.errors import ModelError
from edgert.kernels.low_pages import pack
from edgert.kernels.pages import CACHE_TYPES, PAGE, POSITIONS, head_layout, page_bytes
from edgert.models.config import Config
from edgert.residency.region import HUGE_PAGE, Region

from .low_blocks import LOW, LowBlocks
from .swap_file import SwapFile
from .window_pages import WindowPages, blocks_of, windowed_block_bytes, windowed_layers


class Pool:
    """Blocks for `positions` positions, rounded up; sessions take them, share them, and give them back.

    A block is PAGE positions of every layer: (layers, key-value heads) of what kernels/pages.py calls a head of a page.
    Who uses one holds it, with others or alone; what several hold is only read. swap: where blocks can be moved out of
    memory to (`have_swap`); what is there has a number from `count` on, and can be held like others. reclaim,
    reclaim_out: called where no block is free, in memory or on flash; whether one has been let go of.

    windowed: of how many blocks there is room for pages of layers with a window (window_pages.py), which then come and
    go; 0 where they are part of every block, as those of all other layers are. Raises ModelError for a type that is not
    known.
    """

    def __init__(self, config: Config, cache_type: str, positions: int, *, windowed: int = 0) -> None:
        self._config, self.layers, self.cache_type = config, config.num_hidden_layers, cache_type
        self.head = head_layout(checked_type(cache_type), config.head_dim)
        self.page_bytes = page_bytes(cache_type, config.num_key_value_heads, config.head_dim)
        with_window = windowed_layers(config)
        self.windows = WindowPages(len(with_window), self.page_bytes, windowed) if windowed else None
        self.windowed = np.array(with_window if windowed else [], np.int64)
        """Numbers of layers whose pages come and go."""
        self.whole = np.setdiff1d(np.arange(self.layers), self.windowed)
        """Numbers of layers whose pages are part of every block."""
        self.in_order = [*np.setdiff1d(np.arange(self.layers), with_window).tolist(), *with_window]
        """Numbers of all layers, those with a window last."""
        self.block_bytes, self.count = len(self.whole) * self.page_bytes, blocks_of(positions)
        self.reclaim: Callable[[], bool] = lambda: False
        self.reclaim_out: Callable[[], bool] = lambda: False
        # Of huge pages, if a block is no smaller: all of one becomes resident with its first token.
        self._region = Region(self.count * self.block_bytes, f"the cache of {positions} tokens",
                              huge=self.block_bytes >= HUGE_PAGE // 2)
        self.swap: SwapFile | None = None
        self._low: LowBlocks | None = None
        self._holders = [0] * self.count
        self._windows_out: set[int] = set()
        """Blocks on flash that have the pages of layers with a window there."""
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
            if self.windows is not None:
                self.windows.drop(block)
            if self.is_out(block):
                assert self.swap is not None
                self.swap.free(self.slot(block))
                self._windows_out.discard(block)
            else:
                self._free.append(block)

    def is_out(self, block: int) -> bool:
        """Whether it is on flash, not in memory."""
        return self.count <= block < LOW

    def slot(self, block: int) -> int:
        """Where in `swap` a block is that is on flash."""
        return block - self.count

    def copies_out(self, blocks: Sequence[int], *, windows: bool = True) -> list[int]:
        """Blocks on flash with the same contents as these in memory, all at once. windows: also pages of layers with a
        window, as far as they are there. Raises ModelError."""
        assert self.swap is not None
        while self.swap.room < len(blocks) and self.reclaim_out():
            pass
        made = [self.count + slot for slot in self.swap.put([self._rows(block, windows=windows) for block in blocks])]
        for block, of in zip(made, blocks, strict=True):
            self._holders[block] = 1
            if windows and self.windows is not None and self.windows.there(of):
                self._windows_out.add(block)
        return made

    def copies_in(self, blocks: Sequence[int]) -> list[int]:
        """Blocks in memory with the same contents as these on flash, all at once, but for pages of layers with a window
        (`bring_windows`). Raises ModelError."""
        assert self.swap is not None
        made: list[int] = []
        try:
            made += (self.take() for _ in blocks)
            self.swap.take_back([self.slot(block) for block in blocks], [self._rows(block) for block in made])
        except BaseException:
            for block in made:
                self.give_back(block)
            raise
        return made

    def move_out(self, block: int) -> int:
        """A block on flash with the same contents, in the place of one that is held; pages of layers with a window stay
        where they are. Raises ModelError."""
        return self._moved(block, self.copies_out([block], windows=False)[0])

    def move_in(self, block: int) -> int:
        """A block in memory with the same contents, in the place of one that is held. Raises ModelError."""
        return self._moved(block, self.copies_in([block])[0]) if self.is_out(block) else block

    def _moved(self, block: int, to: int) -> int:
        if self.windows is not None:
            (self.windows.copy if self.shared(block) else self.windows.rename)(block, to)
        self.give_back(block)
        return to

    def has_windows(self, block: int) -> bool:
        """Whether pages of layers with a window are there of a block, in memory or on flash."""
        return self.windows is None or self.windows.there(block) or block in self._windows_out

    def bring_windows(self, block: int, of: int) -> None:
        """Have the pages of layers with a window of a block in memory; where they are not, as another one with the same
        contents has them, or it itself on flash. Raises ModelError."""
        if self.windows is None or self.windows.there(block):
            return
        self.windows.touch(of)
        known = self.windows.there(of)
        self.windows.take(block)
        if known:
            self.windows.copy(of, block)
        elif of in self._windows_out:
            assert self.swap is not None
            rows = self._rows(block)
            try:
                self.swap.take_back([self.slot(of)], [[row if layer in self.windowed else None
                                                       for layer, row in enumerate(rows)]])
            except BaseException:
                self.windows.drop(block)
                raise

    def hand_windows(self, block: int, to: int) -> None:
        """Of a block that is let go of, give the pages of layers with a window to another one with the same contents
        that has none."""
        if self.windows is not None and not self.shared(block) and not self.has_windows(to):
            self.windows.rename(block, to)

    def _rows(self, block: int, *, windows: bool = True) -> list[np.ndarray | None]:
        """A block's pages that are in memory, by layer: uint8 each. windows: also those of layers with a window."""
        rows: list[np.ndarray | None] = [None] * self.layers
        parts = [] if self.is_out(block) else [(self.whole, self.view(block))]
        if windows and self.windows is not None and self.windows.there(block):
            parts.append((self.windowed, self.windows.view(block)))
        for layers, view in parts:
            pages = np.frombuffer(view, np.uint8).reshape(len(layers), self.page_bytes)
            for layer, page in zip(layers.tolist(), pages, strict=True):
                rows[layer] = page
        return rows

    def contents(self, block: int, layers: Sequence[int]) -> list[np.ndarray]:
        """A block's pages of these layers, which it has, wherever they are: uint8 each; copies of those on flash. Of a
        low block all that is in it. Raises ModelError."""
        if self.is_low(block):
            return [np.frombuffer(self.view(block), np.uint8)]
        rows = self._rows(block)
        if missing := [layer for layer in layers if rows[layer] is None]:
            assert self.swap is not None
            read = {layer: np.empty(self.page_bytes, np.uint8) for layer in missing}
            self.swap.take_back([self.slot(block)], [[read.get(layer) for layer in range(self.layers)]])
            return [read[layer] if page is None else page for layer in layers for page in (rows[layer],)]
        return [page for layer in layers if (page := rows[layer]) is not None]

    def into(self, block: int, layers: Sequence[int], passed: np.ndarray) -> list[np.ndarray]:
        """A block's pages of these layers, to be written to: uint8 each; `passed` for those that are not in memory. Of
        a low block all that is in it."""
        if self.is_low(block):
            return [np.frombuffer(self.view(block), np.uint8)]
        rows = self._rows(block)
        return [passed if (page := rows[layer]) is None else page for layer in layers]

    @property
    def free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._free)

    def pages(self, block: int) -> np.ndarray:
        """Addresses of a block's pages, one for each layer: int64; 0 where a page is not in memory."""
        if self.is_low(block):
            return self.low.pages(block)
        found = np.zeros(self.layers, np.int64)
        if not self.is_out(block):
            found[self.whole] = (self._region.address + block * self.block_bytes
                                 + self.page_bytes * np.arange(len(self.whole)))
        if self.windows is not None:
            found[self.windowed] = self.windows.pages(block)
        return found

    def view(self, block: int) -> memoryview:
        """The bytes of a block, but of pages that come and go."""
        if self.is_low(block):
            return self.low.view(block)
        return self._region.view(block * self.block_bytes, self.block_bytes)

    def heads(self, block: int) -> np.ndarray:
        """What a block contains: an array (layers, key-value heads) of kernels.pages.head_layout, of layers whose pages
        are part of every block."""
        return np.frombuffer(self.view(block), self.head).reshape(len(self.whole), self._config.num_key_value_heads)

    def parts(self, block: int) -> list[np.ndarray]:
        """The same, and of the other layers, if their pages are there."""
        if self.windows is None or not self.windows.there(block):
            return [self.heads(block)]
        return [self.heads(block), np.frombuffer(self.windows.view(block), self.head).reshape(
            len(self.windowed), self._config.num_key_value_heads)]

    def page(self, block: int, layer: int) -> np.ndarray | None:
        """A layer's part of a block, (key-value heads,) of kernels.pages.head_layout; None if it is not there."""
        row = self._rows(block)[layer]
        return None if row is None else row.view(self.head)

    def copy(self, block: int, to: int) -> None:
        """Copy what a block contains."""
        self.heads(to)[:] = self.heads(block)
        if self.windows is not None:
            self.windows.copy(block, to)

    def copy_position(self, block: int, place: int, to: int, to_place: int) -> None:
        """Copy the key and value at a place of a block to a place of another one, or of the same, of all layers."""
        (tile, lane), (to_tile, to_lane) = divmod(place, POSITIONS), divmod(to_place, POSITIONS)
        for source, target in zip(self.parts(block), self.parts(to), strict=True):
            for name in ("keys", "key_scales"):
                target[name][..., to_tile, :, to_lane] = source[name][..., tile, :, lane]
            target["values"][:, :, to_place] = source["values"][:, :, place]
            target["value_scales"][..., to_place] = source["value_scales"][..., place]

    def touch(self) -> None:
        """Make all of it resident now; what it contains is lost."""
        self._region.touch()
        if self.windows is not None:
            self.windows.region.touch()
        if self._low is not None:
            self._low.region.touch()

    def close(self) -> None:
        if self.swap is not None:
            self.swap.close()
        if self._low is not None:
            self._low.region.close()
        if self.windows is not None:
            self.windows.region.close()
        self._region.close()


def checked_type(cache_type: str) -> str:
    """Raises ModelError for a type that no cache has."""
    if cache_type not in CACHE_TYPES:
        raise ModelError(f"cache type {cache_type!r} is not known; known: {', '.join(CACHE_TYPES)}")
    return cache_type


def pool_bytes(config: Config, positions: int, cache_type: str, windowed: int = 0) -> int:
    """Bytes of a pool for so many positions. windowed: as of Pool."""
    return (blocks_of(positions) * block_bytes(config, cache_type, split=windowed > 0)
            + windowed * windowed_block_bytes(config, cache_type))


def block_bytes(config: Config, cache_type: str, *, split: bool = False) -> int:
    """Bytes of a block. split: without those of layers with a window."""
    whole = config.num_hidden_layers * page_bytes(cache_type, config.num_key_value_heads, config.head_dim)
    return whole - windowed_block_bytes(config, cache_type) if split else whole
