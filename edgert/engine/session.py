"""A session: the key-value cache of one conversation, and how much of it is in use."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from edgert.errors import ModelError
from edgert.kernels.pages import PAGE
from edgert.kernels.pages import key_bytes as bytes_of_keys
from edgert.kernels.records import Token
from edgert.models.config import Config

from .page_stream import PageStream
from .pool import Pool, checked_type
from .rotation import Rotation, turn_keys, turned_low
from .session_blocks import SessionBlocks
from .window_pages import blocks_of


class Session:
    """The key-value cache of a conversation, of which `length` tokens have been computed; `tokens` are their ids.

    It holds the keys and values of at most `context` tokens, in blocks of a pool (pool.py; by default one of its own),
    which it takes when they are needed. Truncating a session costs nothing: what lies behind its new length is written
    over later.

    Where a policy (retention.py) lets go of some, `held` are left, in order; those of a head need not be those of
    another. A token's rotary position is its number, until the model was not trained for more: then what is held is
    turned to the positions from 0 on, and the next ones follow.

    stream: where the session may have blocks on flash, because the pool has room for only some: it reads them for each
    layer. The first block and the latest ones stay in memory.

    low: how many blocks at most may be low ones (low_blocks.py). They come first among those that are held, whatever
    their positions are: attention does not ask for the order. The pool has them.

    Where pages of layers with a window come and go (window_pages.py), it needs those that the next tokens look at.
    """

    def __init__(self, config: Config, context: int, cache_type: str, pool: Pool | None = None,
                 stream: PageStream | None = None, *, low: int = 0) -> None:
        check_session(config, context, cache_type)
        self.config, self.context, self.cache_type = config, context, cache_type
        self.tokens: list[int] = []
        self._owns_pool = pool is None
        self.pool = _own_pool(config, context, cache_type, low) if pool is None else pool
        self.blocks, self.most_low = SessionBlocks(config, context, self.pool, stream), low
        self._frequencies = config.rope_tables()
        self._angles = np.empty((0, config.rotary_dim * config.angle_tables), np.float32)
        self._key_bytes = bytes_of_keys(cache_type, config.head_dim)
        self._forget()

    def _forget(self) -> None:
        self._let_go, self._unchanged = 0, 0
        self.ahead = 0
        """By how much the rotary position of the next token exceeds the number of those that are held."""
        self._places = np.zeros((1, 1, 0), np.int32)
        """Rotary positions of what was held when something was let go of the last time: (layers, heads, positions)."""
        self._importance: np.ndarray | None = None
        self._prompt: Sequence[int] = ()
        self.parted = 0
        """The length at which it parted from what others had computed: more may begin like that."""

    @property
    def length(self) -> int:
        """Number of tokens that have been computed."""
        return len(self.tokens)

    @property
    def held(self) -> int:
        """Of how many of them keys and values are held: so many of each head."""
        return self.length - self._let_go

    @property
    def room(self) -> int:
        """Of how many more there is room for keys and values, before a policy makes room."""
        return self.context - PAGE * (self.most_low - self.low) - self.held

    @property
    def low(self) -> int:
        """How many blocks are low ones."""
        return self.blocks.low() if self.most_low else 0

    @property
    def shortest(self) -> int:
        """The least length other than 0 that it can be truncated to: since then nothing was let go of."""
        return self._unchanged

    def read(self, prompt: Sequence[int]) -> None:
        """Say that the session will have these tokens: until it has, its policy may look at how they end."""
        self._prompt = prompt

    @property
    def coming(self) -> Sequence[int]:
        """The prompt that is being read; none when it has been."""
        reads = self.length < len(self._prompt) and list(self._prompt[:self.length]) == self.tokens
        return self._prompt if reads else ()

    def record_in_memory(self) -> np.ndarray:
        """As `records` of one token that sees only what is held in memory."""
        row = self.records(1)
        pages, out = self.blocks.in_memory()
        for name, value in (("pages", pages.ctypes.data), ("layer_pages", pages.shape[1])):
            row[:, Token._fields.index(name)] = value
        for name in ("position", "slot"):
            row[:, Token._fields.index(name)] -= PAGE * out
        return row

    def records(self, count: int, siblings: Sequence[int] = ()) -> np.ndarray:
        """What the kernels need to know of the next `count` tokens (records.Token), then of their siblings: int64, a
        row for each, valid until it is called again. siblings: for each the index of the token in whose place it
        stands. Their keys and values come behind those of the tokens: sibling i's slot is held + count + i.

        Raises ModelError if the pool has no room."""
        reserved = self.held + count + len(siblings)
        self.blocks.reserve(self.held, reserved)
        self.need_windows(reserved)
        slots = np.arange(self.held, self.held + count + len(siblings))
        positions = np.concatenate([slots[:count], self.held + np.asarray(siblings, np.int64)])
        self._angles = self._angles_of(positions + self.ahead)
        rows = np.empty((len(slots), len(Token._fields)), np.int64)
        pages = self.blocks.pages
        rows[:] = Token(pages.ctypes.data, pages.shape[1], self.pool.head.itemsize, self._key_bytes, 0, 0, 0,
                        PAGE * self.low)
        for name, column in (("position", positions), ("slot", slots),
                             ("angles", self._angles.ctypes.data + self._angles.strides[0] * np.arange(len(slots)))):
            rows[:, Token._fields.index(name)] = column
        return rows

    def _angles_of(self, positions: np.ndarray) -> np.ndarray:
        """Of rotary positions (records.Token): float32."""
        parts, factor, scales = [], self.config.rope_attention_factor, self.config.query_scales(positions)
        for frequencies in self._frequencies:
            angles = positions[:, None] * frequencies
            parts += [np.cos(angles) * factor, np.sin(angles) * factor]
        if scales is not None:
            parts += [part * scales[:, None] for part in parts]
        return np.concatenate(parts, 1).astype(np.float32)

    def need_windows(self, positions: int = 0) -> None:
        """Have in memory of layers with a window what the next tokens look at, up to so many positions. Raises
        ModelError."""
        self.blocks.need_windows(self.held, positions, (self.parted, len(self._prompt) - 1))

    def settle(self) -> None:
        """After blocks were appended or let go of: have in memory what will be written, and of the latest what there is
        room for. Raises ModelError."""
        self.need_windows()
        self.blocks.settle(self.held)

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens and forget all after them; all of them, if the policy has let go of some since
        then. Where pages of layers with a window come and go, fewer may be kept, as many as it can go on after; not if
        no more than PAGE tokens go, all of them computed since it was truncated last. Raises ModelError."""
        if not 0 <= length <= self.length:
            raise ModelError(f"a session of {self.length} tokens cannot be truncated to {length}")
        if self.blocks.windows is not None and length < self.length:
            there = list(map(self.pool.has_windows, self.blocks.ids))
            length = self._let_go + self.blocks.reachable(there, max(length - self._let_go, 0))
        del self.tokens[length:]
        if length < self._unchanged:
            self.tokens.clear()
            self._forget()
        while len(self.blocks.ids) > blocks_of(self.held):
            self.blocks.give_back(-1)
        if any(map(self.pool.is_out, self.blocks.ids[self.held // PAGE:])):
            self.settle()
        self.need_windows()

    @contextmanager
    def tried(self, count: int) -> Iterator[list[int]]:
        """Within the block the last `count` tokens, which it gives, are not there, and what is computed in their place
        does not stay."""
        tokens, length = self.tokens[-count:], self.length
        touched = slice((self.held - len(tokens)) // PAGE, blocks_of(self.held))
        saved = [self.pool.heads(block).copy() for block in self.blocks.ids[touched]]
        del self.tokens[length - len(tokens):]
        try:
            yield tokens
        finally:
            self.tokens[length - len(tokens):] = tokens
            for block, content in zip(self.blocks.ids[touched], saved, strict=True):
                self.pool.heads(block)[:] = content

    def adopt(self, slot: int, position: int, token: int) -> None:
        """Keep the keys and values of the first `position` positions that are held, and after them `token`, a sibling
        that was computed for that position; its key and value are in `slot` (records). Raises ModelError."""
        if not 0 <= position <= slot < self.context:
            raise ModelError(f"slot {slot} holds no sibling for position {position} in a context of {self.context}")
        if position > self.held:
            raise ModelError(f"a session that holds {self.held} tokens has no position {position}")
        self.pool.copy_position(self.blocks.ids[slot // PAGE], slot % PAGE, self.blocks.ids[position // PAGE],
                                position % PAGE)
        length = position + self._let_go
        self.tokens[length:] = [token]  # before blocks are given back: its own may be the last
        self.truncate(length + 1)

    def importance(self, shape: tuple[int, ...]) -> np.ndarray:
        """What a policy found important of what is held (`keep`): float32 of a shape (..., held), 0 for what is new."""
        found = np.zeros(shape, np.float32)
        if self._importance is not None:
            found[..., :self._importance.shape[-1]] = self._importance
        return found

    def drop_block(self, number: int) -> None:
        """Let go of a whole block."""
        places = self._rope_places()
        self.blocks.drop(number)
        self._went(PAGE, np.delete(places, slice(number * PAGE, (number + 1) * PAGE), -1))

    def lower_block(self, number: int) -> None:
        """Make a low block of a whole block, the last of those."""
        low, places = self.low, self._rope_places()
        self.blocks.lower(number)
        moved = places[..., number * PAGE:(number + 1) * PAGE]
        rest = np.delete(places, slice(number * PAGE, (number + 1) * PAGE), -1)
        self._went(0, np.concatenate([rest[..., :low * PAGE], moved, rest[..., low * PAGE:]], -1))

    def keep(self, places: np.ndarray, importance: np.ndarray) -> None:
        """Let go of all positions but some of each head. places: int64 (layers, key-value heads, n), ascending;
        importance: float32 of that shape, which a policy finds again the next time."""
        before = np.broadcast_to(self._rope_places(), (*places.shape[:2], self.held))
        self.blocks.reserve_alone()
        blocks = [self.pool.heads(block) for block in self.blocks.ids[:blocks_of(self.held)]]
        for layer, heads in enumerate(places):
            pages = np.stack([block[layer] for block in blocks], 1)
            for head, some in enumerate(heads):
                _move(pages[head], some)
            for number, block in enumerate(blocks):
                block[layer] = pages[:, number]
        self._importance = importance
        self._went(self.held - places.shape[-1], np.take_along_axis(before, places, -1))

    def _rope_places(self) -> np.ndarray:
        """Rotary positions of all that is held, (layers, heads, held), where they are the same (1, 1, held)."""
        known = self._places.shape[-1]
        new = np.arange(known, self.held, dtype=np.int32) + self.ahead
        return np.concatenate([self._places, np.broadcast_to(new, (*self._places.shape[:2], len(new)))], -1)

    def _went(self, count: int, places: np.ndarray) -> None:
        """So many positions are held no longer. places: the rotary positions of what is."""
        self._let_go += count
        self.ahead += count
        self._unchanged, self._places = self.length, places.astype(np.int32)

    def turn(self, centers: np.ndarray | None) -> None:
        """Turn what is held to the rotary positions from 0 on, just after something was let go of. centers: as of
        key_centers."""
        self.blocks.reserve_alone()
        order, low = np.arange(self.held)[None, None], self.low
        if low:  # they come first, whatever their positions are
            order = np.argsort(np.argsort(self._places, -1, kind="stable"), -1)
        turns = order - self._places
        for layer in range(self.config.num_hidden_layers):
            if (table := self.config.rope_table(layer)) is None:
                continue
            rotation = Rotation(self._frequencies[table], self.config.head_dim, self.config.rotates_neighbours)
            exact = [(number, page) for number, block in enumerate(self.blocks.ids[low:blocks_of(self.held)], low)
                     if (page := self.pool.page(block, layer)) is not None]
            pages = np.stack([page for _, page in exact], 1)
            lows = [self.pool.low.heads(block)[layer] for block in self.blocks.ids[:low]]
            for head in range(len(pages)):
                by, center = turns[layer % len(turns), head % turns.shape[1]], (
                    None if centers is None else centers[layer, head])
                turn_keys(pages[head], np.concatenate([by[number * PAGE:(number + 1) * PAGE] for number, _ in exact]),
                          rotation, center)
                for number, page in enumerate(lows):
                    page[head] = turned_low(page[head], by[number * PAGE:(number + 1) * PAGE], rotation, center)
            for place, (_, page) in enumerate(exact):
                page[:] = pages[:, place]
        self.ahead, self._places = 0, order.astype(np.int32)

    def common_prefix(self, tokens: Sequence[int]) -> int:
        """The length of the longest common prefix of the session's tokens and `tokens`."""
        return common_length(self.tokens, tokens)

    def release(self) -> list[tuple[int, tuple[int, ...]]]:
        """Let go of all blocks that hold tokens: each, whoever called this holds it now, and its tokens, in order; of
        none, where a policy has let go of some positions. The session is empty then; other blocks are given back."""
        used = blocks_of(self.length) if not self._unchanged else 0
        released = self._with_tokens(used)
        self.blocks.leave(used)
        self.tokens = []
        self._forget()
        return released

    def share(self) -> list[tuple[int, tuple[int, ...]]]:
        """As `release`, of the blocks that are full; the session goes on with them, and so may others."""
        full = self.length // PAGE if not self._unchanged else 0
        for block in self.blocks.ids[:full]:
            self.pool.share(block)
        return self._with_tokens(full)

    def _with_tokens(self, count: int) -> list[tuple[int, tuple[int, ...]]]:
        """The first so many blocks, each with the tokens in it."""
        return [(self.blocks.ids[n], tuple(self.tokens[n * PAGE:(n + 1) * PAGE])) for n in range(count)]

    def state(self) -> tuple[list[int], np.ndarray, np.ndarray | None]:
        """What `restore` wants: the blocks that hold tokens, rotary positions, and what a policy found important."""
        return self.blocks.ids[:blocks_of(self.held)], self._places, self._importance

    def restore(self, tokens: Sequence[int], held: int, ahead: int, unchanged: int, blocks: Iterable[int],
                more: tuple[np.ndarray, np.ndarray | None]) -> None:
        """Become, when empty, what another session was. blocks: those of `state`, which it holds from now on."""
        self.release_all()
        self.tokens, self.ahead, self._unchanged = list(tokens), ahead, unchanged
        self._let_go = len(tokens) - held
        for block in blocks:
            self.blocks.append(block)
        self._places, self._importance = more
        self.need_windows()

    def release_all(self) -> None:
        """Give all blocks back, and be empty."""
        while self.blocks.ids:
            self.blocks.give_back(-1)
        self.tokens = []
        self._forget()

    def append_block(self, block: int, tokens: Sequence[int]) -> None:
        """Go on with a block that the session holds from now on, in which the keys and values of `tokens` stand. The
        session is as long as whole blocks. After the last one of those that may be on flash: `settle`."""
        self.blocks.append(block)
        self.tokens += tokens

    def close(self) -> None:
        """Give its blocks back."""
        self.release_all()
        if self._owns_pool:
            self.pool.close()


def _own_pool(config: Config, context: int, cache_type: str, low: int) -> Pool:
    pool = Pool(config, cache_type, context - low * PAGE)
    if low:
        pool.have_low(low)
    return pool


def _move(pages: np.ndarray, places: np.ndarray) -> None:
    """Move some positions of a head's pages, in order, to their start."""
    to = np.arange(len(places))
    for name, tiled in (("keys", True), ("key_scales", True), ("values", False), ("value_scales", False)):
        part = pages[name]
        if tiled:
            lanes = part.transpose(0, 1, 3, 2)  # (page, tile, lane, ...)
            index = [np.unravel_index(n, lanes.shape[:3]) for n in (to, places)]
        else:
            lanes = part.transpose(0, 2, 1) if name == "value_scales" else part
            index = [np.unravel_index(n, lanes.shape[:2]) for n in (to, places)]
        if part.size:
            lanes[index[0]] = lanes[index[1]]


def common_length(tokens: Sequence[int], others: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    pairs = enumerate(zip(tokens, others, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(tokens), len(others)))


def check_session(config: Config, context: int, cache_type: str) -> None:
    """Raises ModelError for settings that no session can have."""
    checked_type(cache_type)
    if not 1 <= context <= config.max_position_embeddings:
        raise ModelError(f"a context of {context} tokens was asked for; this model takes 1 to "
                         f"{config.max_position_embeddings}")


def table_bytes(config: Config, context: int) -> int:
    """Bytes of a session's table of pages."""
    return 8 * config.num_hidden_layers * blocks_of(context)
