"""How much of the key-value cache stays in memory, and what goes to flash.

Of a cache that may be larger than memory each byte that is not there is read once for each pass, and so is each byte of
weights. But weights are needed from the first token on, the cache only as far as the conversation has come: of a byte
of memory the weights have more. So the cache gets little as long as weights are streamed, enough for drafts to see the
latest positions, and all that is left when none are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from edgert.engine.low_blocks import low_block_bytes
from edgert.engine.page_stream import stream_bytes
from edgert.engine.pool import block_bytes, pool_bytes
from edgert.engine.prefixes import MORE_POSITIONS
from edgert.engine.retention import FLASH, MIXED, POLICIES, Policy
from edgert.engine.session import table_bytes
from edgert.engine.swap_file import memory_bytes, stride_of
from edgert.engine.window_pages import blocks_of, window_blocks, windowed_block_bytes, windowed_layers
from edgert.errors import ModelError
from edgert.kernels.pages import PAGE, page_bytes
from edgert.models.config import Config
from edgert.sizes import size_text

_LATEST = 1024
"""Positions that stay in memory at least."""
_SWAPPED = 4
"""The file for what has no room has room for so many contexts."""
_EXACT = 8
"""Blocks that are not low ones, at least: with attention sinks, and the latest positions."""
_OVER = 4
"""Blocks that may be on flash for a moment although there is room for them in memory."""


class _Planner(Protocol):
    @property
    def whole(self) -> int: ...


@dataclass(frozen=True)
class CacheRoom:
    """Where the cache of `context` positions is. positions: that the pool has room for in memory, of all conversations
    together. flash: whether a conversation may have a part on flash while it is computed. low: how many of its blocks
    may be low ones (engine/low_blocks.py). parallel: how many conversations are answered at once, each with a context
    of its own. windowed: of how many blocks there is room for pages of layers with a window (engine/window_pages.py); 0
    where they are part of every block."""

    config: Config
    cache_type: str
    context: int
    positions: int
    flash: bool = False
    low: int = 0
    parallel: int = 1
    windowed: int = 0

    @property
    def most_on_flash(self) -> int:
        """How many blocks of a conversation may be on flash while it is computed."""
        if not self.flash:
            return 0
        return max(blocks_of(self.context) - blocks_of(self.positions) + _OVER, _OVER)

    @property
    def bytes(self) -> int:
        """Of the pool, and of each session's table of pages."""
        return (pool_bytes(self.config, self.positions, self.cache_type, self.windowed)
                + self.parallel * table_bytes(self.config, self.context) + self.low * low_block_bytes(self.config))

    @property
    def read_ahead_bytes(self) -> int:
        """Of memory that pages on flash are read to."""
        return stream_bytes(self.most_on_flash, self._page_bytes)

    @property
    def swap_bytes(self) -> int:
        """Of memory that goes with the file."""
        return memory_bytes(self.config.num_hidden_layers, self._page_bytes, self.slots)

    @property
    def slots(self) -> int:
        """Blocks that the file has room for."""
        return _SWAPPED * (blocks_of(self.context) + 1)

    @property
    def on_flash(self) -> int:
        """Bytes that are read for each pass when a conversation has come to its end."""
        blocks = blocks_of(self.context) - blocks_of(self.positions)
        layers = self.config.num_hidden_layers - (len(windowed_layers(self.config)) if self.windowed else 0)
        return max(blocks, 0) * layers * stride_of(self._page_bytes) if self.flash else 0

    @property
    def _page_bytes(self) -> int:
        return page_bytes(self.cache_type, self.config.num_key_value_heads, self.config.head_dim)


def cache_room(config: Config, cache_type: str, context: int, policy: Policy, chunk: int, memory: int | None,
               budget: int | None, planner: Callable[[CacheRoom], _Planner], *, parallel: int = 1) -> CacheRoom:
    """The room for a cache. memory: bytes that it shall take, None for what is best. budget: of the whole process, None
    for as much as it takes. planner: makes a memory plan for a room. parallel: as in CacheRoom. Raises ModelError for
    bytes that are too few, and for policies that go with one answer at a time."""
    if parallel > 1 and (policy.flash or policy is POLICIES[MIXED]):
        raise ModelError(f"{parallel} answers at once do not go with the cache policies {FLASH} and {MIXED}; take "
                         "another policy, or one at a time")
    windowed = window_blocks(config, context, min(chunk, context), parallel) if policy.windows else 0
    size = block_bytes(config, cache_type, split=windowed > 0)
    everything = CacheRoom(config, cache_type, context, parallel * (blocks_of(context) * PAGE + MORE_POSITIONS),
                           policy.flash and size > 0, parallel=parallel, windowed=windowed)
    least = min(max(_LATEST, chunk + 3 * PAGE), everything.positions) if everything.flash else everything.positions
    if policy is POLICIES[MIXED]:
        return _mixed_room(config, cache_type, context, memory)
    if memory is not None:
        left = memory - windowed * windowed_block_bytes(config, cache_type)
        positions = max(left, 0) // size * PAGE if size else everything.positions if left >= 0 else 0
        if positions < least:
            raise ModelError(f"{size_text(memory)} for the key-value cache hold {positions} tokens, and it needs room "
                             f"for {least}: {size_text(memory - left + size * blocks_of(least))}"
                             + ("" if policy.flash else "; a smaller --context takes less, and --kv-policy flash keeps "
                                                        "on flash what has no room"))
        return replace(everything, positions=positions, flash=everything.flash and positions < everything.positions)
    if not everything.flash or budget is None or planner(everything).whole <= budget:
        return replace(everything, flash=False)
    smallest = replace(everything, positions=least, flash=least < everything.positions)
    left = max(budget - planner(smallest).whole, 0)
    positions = least + left // (size + size // 16) * PAGE
    return replace(everything, positions=min(positions, everything.positions - PAGE))


def context_in(config: Config, cache_type: str, memory: int, policy: Policy, chunk: int, parallel: int) -> int:
    """The longest context for which the cache takes no more than `memory` bytes; below 1 where there is none."""
    def of(left: int, *, split: bool) -> int:
        size = block_bytes(config, cache_type, split=split)
        most = left // size // parallel * PAGE if size and left >= 0 else config.max_position_embeddings * (left >= 0)
        return min(most, config.max_position_embeddings) - MORE_POSITIONS

    windowed = window_blocks(config, config.max_position_embeddings, chunk, parallel) if policy.windows else 0
    split = of(memory - windowed * windowed_block_bytes(config, cache_type), split=True) if windowed else 0
    applies = split > 0 and window_blocks(config, split, min(chunk, split), parallel) > 0
    return max(of(memory, split=False), split if applies else 0)


def _mixed_room(config: Config, cache_type: str, context: int, memory: int | None) -> CacheRoom:
    """Where blocks may become low ones: as few as bytes allow; and if there are too few of them for that too, for as
    long a context as there is room for. Raises ModelError."""
    size, low_size, blocks = block_bytes(config, cache_type), low_block_bytes(config), context // PAGE
    low = blocks - _EXACT
    if memory is not None:
        more = memory - MORE_POSITIONS // PAGE * size
        low = min(low, max(-(-(blocks * size - more) // (size - low_size)), 0))
        blocks = min(blocks, _EXACT + (more - _EXACT * size) // low_size)
        low = min(low, blocks - _EXACT)
        if blocks < POLICIES[MIXED].least // PAGE:
            least = (_EXACT + MORE_POSITIONS // PAGE) * size + (POLICIES[MIXED].least // PAGE - _EXACT) * low_size
            raise ModelError(f"{size_text(memory)} for the key-value cache are too few for the policy {MIXED}; it "
                             f"needs {size_text(least)}")
    return CacheRoom(config, cache_type, PAGE * blocks, PAGE * (blocks - low) + MORE_POSITIONS, low=low)
