"""A session: the key-value cache of one conversation, and how much of it is in use."""

from collections.abc import Sequence

import numpy as np

from edgert.errors import ModelError
from edgert.kernels.records import CACHE_ELEMENTS, POSITIONS, Token, padded_head_dim
from edgert.models.config import Config
from edgert.residency.region import HUGE_PAGE, Region

_ROPE_ROWS = 512


class Session:
    """The key-value cache for `context` tokens, of which the first `length` have been computed; `tokens` are their ids.

    The cache is one allocation of float16 or float32 elements, as cache_type says (kernels/cache.py). positions is
    `context` rounded up to a multiple of 16; head_dim is rounded up likewise, and padded with zeros.

        cache        (layers, 2, key_value_heads, ...)          keys, then values: `layer_bytes` a layer, and of those
                                                                `head_bytes` for the keys, or the values, of a head
          keys       (..., positions / 16, head_dim, 16)        in tiles of 16 positions, component by component
          values     (..., positions, head_dim)                 position by position
        rope         (context, head_dim)                        float32: for each position head_dim / 2 cosines, then
                                                                as many sines

    Truncating a session costs nothing: what lies behind its new length is written over later.
    """

    def __init__(self, config: Config, context: int, cache_type: str) -> None:
        check_session(config, context, cache_type)
        self.config, self.context, self.cache_type = config, context, cache_type
        self.tokens: list[int] = []
        self.head_bytes, self.layer_bytes, self.bytes = cache_bytes(config, context, cache_type)
        # Not for shorter ones, whose heads share huge pages: all of a cache would become resident with its first token.
        self._cache = Region(self.bytes, f"the cache of {context} tokens", huge=self.head_bytes >= HUGE_PAGE)
        self._rope = np.empty((context, config.head_dim), np.float32)
        half, frequencies = config.head_dim // 2, config.rope_frequencies()
        for start in range(0, context, _ROPE_ROWS):  # in float64, a part at a time
            angles = np.arange(start, min(start + _ROPE_ROWS, context))[:, None] * frequencies
            self._rope[start:start + _ROPE_ROWS, :half] = np.cos(angles)
            self._rope[start:start + _ROPE_ROWS, half:] = np.sin(angles)

    @property
    def length(self) -> int:
        """Number of tokens that have been computed."""
        return len(self.tokens)

    def records(self, count: int, siblings: Sequence[int] = ()) -> np.ndarray:
        """What the kernels need to know of the next `count` tokens (records.Token), then of their siblings: int64, a
        row for each. siblings: for each the index of the token in whose place it stands. Their keys and values come
        behind those of the tokens: sibling i's slot is length + count + i."""
        slots = np.arange(self.length, self.length + count + len(siblings))
        positions = np.concatenate([slots[:count], self.length + np.asarray(siblings, np.int64)])
        angles = self._rope.ctypes.data + self._rope.strides[0] * positions
        rows = np.empty((len(slots), len(Token._fields)), np.int64)
        rows[:] = Token(self._cache.address, self.layer_bytes, self.head_bytes, 0, 0, 0)
        for name, column in (("position", positions), ("angles", angles), ("slot", slots)):
            rows[:, Token._fields.index(name)] = column
        return rows

    def touch(self) -> None:
        """Make all its memory resident now."""
        self._cache.touch()

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens and forget all after them. Raises ModelError."""
        if not 0 <= length <= self.length:
            raise ModelError(f"a session of {self.length} tokens cannot be truncated to {length}")
        del self.tokens[length:]

    def adopt(self, slot: int, position: int, token: int) -> None:
        """Keep the first `position` tokens, and after them `token`, a sibling that was computed for that position; its
        key and value are in `slot` (records). Raises ModelError."""
        if not position <= slot < self.context:
            raise ModelError(f"slot {slot} holds no sibling for position {position} in a context of {self.context}")
        self.truncate(position)
        keys, values = self._keys_and_values()
        keys[:, :, position // POSITIONS, :, position % POSITIONS] = keys[:, :, slot // POSITIONS, :, slot % POSITIONS]
        values[:, :, position] = values[:, :, slot]
        self.tokens.append(token)

    def _keys_and_values(self) -> tuple[np.ndarray, np.ndarray]:
        """The cache, (layers, key_value_heads, ...) each."""
        layers, heads = self.config.num_hidden_layers, self.config.num_key_value_heads
        wide, element = padded_head_dim(self.config.head_dim), f"u{CACHE_ELEMENTS[self.cache_type]}"
        cache = np.frombuffer(self._cache.view(0, self.bytes), element).reshape(layers, 2, heads, -1)
        return cache[:, 0].reshape(layers, heads, -1, wide, POSITIONS), cache[:, 1].reshape(layers, heads, -1, wide)

    def common_prefix(self, tokens: Sequence[int]) -> int:
        """The length of the longest common prefix of the session's tokens and `tokens`."""
        pairs = enumerate(zip(self.tokens, tokens, strict=False))
        return next((i for i, (old, new) in pairs if old != new), min(len(self.tokens), len(tokens)))

    def close(self) -> None:
        self._cache.close()


def check_session(config: Config, context: int, cache_type: str) -> None:
    """Raises ModelError for settings that no session can have."""
    if cache_type not in CACHE_ELEMENTS:
        raise ModelError(f"cache type {cache_type!r} is not known; known: {', '.join(CACHE_ELEMENTS)}")
    if not 1 <= context <= config.max_position_embeddings:
        raise ModelError(f"a context of {context} tokens was asked for; this model takes 1 to "
                         f"{config.max_position_embeddings}")


def session_bytes(config: Config, context: int, cache_type: str) -> int:
    """Bytes that a session takes: cache and rotary angles."""
    return cache_bytes(config, context, cache_type)[2] + 4 * context * config.head_dim


def cache_bytes(config: Config, context: int, cache_type: str) -> tuple[int, int, int]:
    """Bytes of a key-value cache: of a head's keys in one layer, of a layer, of all layers."""
    positions = -(-context // POSITIONS) * POSITIONS
    head = positions * padded_head_dim(config.head_dim) * CACHE_ELEMENTS[cache_type]
    layer = 2 * config.num_key_value_heads * head
    return head, layer, config.num_hidden_layers * layer
