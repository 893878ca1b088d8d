"""Weight formats: how a matrix stands in memory, in the layout that the kernels read.

A matrix of `rows` x `columns` is cut into *tiles* of 16 rows (one SIMD lane each) and each tile into *blocks* of 32
columns; rows and columns are padded with zeros. A tile is a header and then its blocks, left to right. Weight formats:

=====  ==============================================================================  ===============
name   block of 16 rows x 32 columns                                                   weight
=====  ==============================================================================  ===============
q4     256 bytes of 4-bit q, 16 uint8 s, 16 uint8 m                                    D*s*q - M*m
q6     the same, and 128 bytes of bits 4 and 5 of q before s and m                     D*s*q - M*m
q8     512 bytes of q + 128, 16 bfloat16 s                                             s*q
q3     64 bytes of bit 0 of q, 128 of bits 1 and 2, 16 uint8 s, 16 uint8 m             D*s*q - M*m
q2     128 bytes of 2-bit q, 16 uint8 s, 16 uint8 m                                    D*s*q - M*m
tern.  128 bytes of q + 1 in 2 bits, 16 float16 s                                      D*s*q
q4n    128 bytes of q + 8 in 4 bits, 64 of positions, 16 uint8 s                       D*s*q
f16    32 x 16 float16, column by column                                               itself
f32    32 x 16 float32, column by column                                               itself
=====  ==============================================================================  ===============

The header of a q2, q3, q4 or q6 tile is 16 bfloat16 D and 16 bfloat16 M: one scale and one minimum a row, which the
8-bit s and m of each block divide. So a 4-bit weight costs 4.5 bits and a little, as in GGUF's Q4_K, whose grids are
carried over. That of a ternary or q4n tile is 16 float32 D. The other formats have no header.

ternary: q is -1, 0 or 1. A scale that is the same in a whole row is D, s being 1; scales of parts of a row are s.
q4n: q is -8 to 7 and 0 in at least 2 of 4 neighbouring columns, a quad ("2:4 sparse": Mishra et al. 2021, "Accelerating
Sparse Deep Neural Networks"). Only the other 2, in order of columns, are there, each with its position in the quad.

In a block the columns stand in 8 *quads* of 4; quad n is columns 4n to 4n + 3, byte 4 * row + column within it. q8 has
one 64-byte vector a quad. q4 has one for two quads: the even one in the low nibbles, the odd one in the high ones. q6's
extra 128 bytes are two vectors: bits 2i and 2i + 1 of vector p belong to quad 4p + i. The two bits of q2, q3 and
ternary are two vectors too: those of quad 4p + i stand in vector p from bit 2, 6, 0, 4 on, for i = 0, 1, 2, 3 (as in
q4's base, below). q3's bit 0 of quad n is bit n // 2 + 4 * (n % 2) of its vector. q4n has a vector for two quads, byte
4 * row + 2 * (quad % 2) + number of the weight: four of these, the nibbles of two in each vector of codes; and of the
positions bits 2i and 2i + 1 belong to vector i.

q4b ("block-sparse") leaves out columns that are 0 in all 16 rows. Its blocks have as many bytes as that takes, and its
tiles those of the longest: block_packing.py.

A block of integers is two *planes*: its *base*, the upper bits of q with scales and minima, and its *detail*, the lower
bits. Together they are the block; the base alone is a coarser one, whose q is read as the middle of what it can be.

=====  ===================================================  ======================  ===================
name   base                                                 detail                  q of a base alone
=====  ===================================================  ======================  ===================
q4     128 bytes of the upper 2 bits, s, m                  128 bytes               4 * upper + 1.5
q6     128 bytes of the upper 2 bits, s, m                  256 bytes of nibbles    16 * upper + 7.5
q8     256 bytes of the upper 4 bits of q + 128, s          256 bytes of nibbles    16 * upper + 8 - 128
q3     128 bytes of the upper 2 bits, s, m                  64 bytes                2 * upper + 0.5
q4n    64 bytes of the upper 2 bits, positions, s           64 bytes                4 * upper + 1.5 - 8
=====  ===================================================  ======================  ===================

q4: pairs 2p and 2p + 1 of its vectors become vector p of each plane, so that they come back by two masks and a shift.
q6 and q3 are put one behind the other: detail, then base. q8: two quads a vector, in nibbles as in q4. q4n: its vectors
of q + 8 as q4's. q2 and ternary are not split.
"""

import re
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

TILE = 16
"""Rows in a tile."""
BLOCK = 32
"""Columns in a block; also the group of activations that share a scale."""

SLAB = 4
"""Tiles of the embedding, or of the output head, that are read and checked together."""

COUNTS, BLOCK_HEAD, QUAD = 32, 24, 32
"""Of q4b, in bytes: the counts of a tile's blocks; a block before its quads; a quad."""

QUANTIZED_BLOCK, FINE_BLOCK, FLOAT_BLOCK = 40, 80, 4 * BLOCK
"""Bytes of a block of 32 activations: quantized to 8 bits, to 15 bits (both activation.py), and as float32."""


class Activation(IntEnum):
    """The form in which activations meet weights."""

    QUANTIZED = 0
    FINE = 1
    FLOAT = 2

    @property
    def block_bytes(self) -> int:
        return (QUANTIZED_BLOCK, FINE_BLOCK, FLOAT_BLOCK)[self]


@dataclass(frozen=True)
class Format:
    """A weight format; `code` is its number in bundles' tensors and in the kernels' names."""

    name: str
    code: int
    block_bytes: int
    header_bytes: int
    activation: Activation
    detail_bytes: int = 0
    """Of a block: its detail plane; 0 where a format is not split."""
    middle: float = 0.0
    """What is added to q where the detail is missing, whose bits are then 0."""
    room: int = 0
    """Of a sized format: the bytes of a tile, or of the down blocks in a group of neurons. `block_bytes` is then the
    most that a block takes."""

    @property
    def kind(self) -> str:
        """The name without a size."""
        return self.name.partition("-")[0]

    @property
    def base_bytes(self) -> int:
        """Of a block: its base plane."""
        return self.block_bytes - self.detail_bytes

    def blocks(self, columns: int) -> int:
        return -(-columns // BLOCK)

    def tile_bytes(self, columns: int) -> int:
        return self.room or self.header_bytes + self.blocks(columns) * self.block_bytes

    def down_bytes(self, tiles: int) -> int:
        """Of the down blocks, without headers, in a group of neurons."""
        return self.room or tiles * self.block_bytes

    def of_size(self, room: int) -> "Format":
        """A sized format with so much room, a multiple of 8."""
        return replace(self, name=f"{self.name}-{room}", code=self.code | room // 8 << 8, room=room)

    def matrix_bytes(self, rows: int, columns: int) -> int:
        return -(-rows // TILE) * self.tile_bytes(columns)


BLOCK_SPARSE = Format("q4b", 9, BLOCK_HEAD + 8 * QUAD, 64, Activation.QUANTIZED)
"""Before it has a size: as `pack` gives it, each block with the room of a full one."""
MOST_ROOM = 1 << 19
"""Within this, 16 bits say where the blocks of a group are, 8 bytes a step."""


class _Formats(dict[str, Format]):
    """Formats by name. A sized one is found by its name and size, q4b-1216, and is not among those gone through."""

    def __missing__(self, name: str) -> Format:
        found = re.fullmatch("q4b-([1-9][0-9]{1,5})", name)
        if found is None or int(found[1]) % 8 or int(found[1]) > MOST_ROOM:
            raise KeyError(name)
        return BLOCK_SPARSE.of_size(int(found[1]))

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and bool(self[name])
        except KeyError:
            return False


FORMATS: dict[str, Format] = _Formats((f.name, f) for f in (
    Format("q4", 0, 288, 64, Activation.QUANTIZED, 128, 1.5),
    Format("q6", 1, 416, 64, Activation.QUANTIZED, 256, 7.5),
    Format("q8", 2, 544, 0, Activation.FINE, 256, 8.0),
    Format("f16", 3, 1024, 0, Activation.FLOAT),
    Format("f32", 4, 2048, 0, Activation.FLOAT),
    Format("q2", 5, 160, 64, Activation.QUANTIZED),
    Format("q3", 6, 224, 64, Activation.QUANTIZED, 64, 0.5),
    Format("ternary", 7, 160, 64, Activation.QUANTIZED),
    Format("q4n", 8, 208, 64, Activation.QUANTIZED, 64, 1.5),
))


@dataclass(frozen=True)
class Quantized:
    """Integers and scales of a matrix of whole tiles and blocks, not yet in the kernels' layout.

    q: (rows, columns) uint8, or int8 of -127..127 for q8, -1..1 for ternary, -8..7 for q4n and q4b. s: (rows, blocks),
    uint8, or float32 that is exact in bfloat16 for q8, in float16 for ternary. m: (rows, blocks) uint8. scale, minimum:
    (rows,) float32, exact in bfloat16 where there are minima. q8 has no m, scale and minimum, ternary, q4n and q4b no m
    and minimum: they are None.
    """

    q: np.ndarray
    s: np.ndarray
    m: np.ndarray | None = None
    scale: np.ndarray | None = None
    minimum: np.ndarray | None = None


def round_bf16(values: np.ndarray, *, up: bool = False) -> np.ndarray:
    """float32 rounded to what bfloat16 holds, to nearest or (for values >= 0) never down; float32 of the same shape."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    add = np.uint32(0xFFFF) if up else np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + add) & np.uint32(0xFFFF0000)).view(np.float32)


def bf16_bytes(values: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def _two_bits(quads: np.ndarray) -> np.ndarray:
    """Numbers below 4, uint8 of shape (..., 8, 64), as the two vectors of the upper bits of q4: (..., 128)."""
    fours = quads.reshape(*quads.shape[:-2], 2, 4, 64)
    vectors = fours[..., 0, :] << 2 | fours[..., 1, :] << 6 | fours[..., 2, :] | fours[..., 3, :] << 4
    return vectors.reshape(*quads.shape[:-2], 128)


def _of_two_bits(vectors: np.ndarray) -> np.ndarray:
    """The inverse of `_two_bits`."""
    some = vectors.reshape(*vectors.shape[:-1], 2, 1, 64)
    return np.concatenate([some >> shift & 3 for shift in (2, 6, 0, 4)], -2).reshape(*vectors.shape[:-1], 8, 64)


def _bf16_values(raw: np.ndarray) -> np.ndarray:
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def pack(form: Format, weights: Quantized | np.ndarray) -> np.ndarray:
    """A matrix in the kernels' layout: uint8 of shape (tiles, tile_bytes). Rows and columns are whole tiles and blocks.

    `weights` is a float32 array for f16 and f32, otherwise a `Quantized`.
    """
    if isinstance(weights, np.ndarray):
        rows, columns = weights.shape
        kind = np.float16 if form.name == "f16" else np.float32
        tiles = weights.astype(kind).reshape(rows // TILE, TILE, columns).transpose(0, 2, 1)
        return np.ascontiguousarray(tiles).view(np.uint8).reshape(rows // TILE, -1)
    rows, columns = weights.q.shape
    tiles, blocks = rows // TILE, columns // BLOCK
    # (tile, block, quad, row, column in quad)
    quads = weights.q.reshape(tiles, TILE, blocks, 8, 4).transpose(0, 2, 3, 1, 4).reshape(tiles, blocks, 8, 64)
    if form.name == "q8":
        scales = bf16_bytes(weights.s.reshape(tiles, TILE, blocks).transpose(0, 2, 1))
        codes = (quads.view(np.uint8) ^ 0x80).reshape(tiles, blocks, 512)
        return np.concatenate([codes, scales.reshape(tiles, blocks, 32)], 2).reshape(tiles, -1)
    assert weights.scale is not None
    if form.name == "q4n":
        return _tiles_of(form, weights.scale, [*_pairs(weights.q), _by_rows(weights.s, tiles)])
    if form.name == "ternary":
        codes = _two_bits((quads + 1).view(np.uint8))
        scales = np.ascontiguousarray(_by_rows(weights.s, tiles).astype(np.float16)).view(np.uint8)
        return _tiles_of(form, weights.scale, [codes, scales])
    assert weights.m is not None and weights.minimum is not None
    parts = [_by_rows(v, tiles) for v in (weights.s, weights.m)]
    if form.name == "q2":
        parts = [_two_bits(quads), *parts]
    elif form.name == "q3":
        bits = quads & 1
        lowest = bits[:, :, 0] | bits[:, :, 1] << 4
        for pair in range(1, 4):
            lowest |= bits[:, :, 2 * pair] << pair | bits[:, :, 2 * pair + 1] << pair + 4
        parts = [lowest, _two_bits(quads >> 1), *parts]
    else:
        low = quads & 15
        planes_of_q = [(low[:, :, 0::2] | low[:, :, 1::2] << 4).reshape(tiles, blocks, 256)]
        if form.name == "q6":
            high = (quads >> 4).reshape(tiles, blocks, 2, 4, 64)
            plane = high[:, :, :, 0] | high[:, :, :, 1] << 2 | high[:, :, :, 2] << 4 | high[:, :, :, 3] << 6
            planes_of_q.append(plane.reshape(tiles, blocks, 128))
        parts = [*planes_of_q, *parts]
    header = [bf16_bytes(v).reshape(tiles, 32) for v in (weights.scale, weights.minimum)]
    return np.concatenate([*header, np.concatenate(parts, 2).reshape(tiles, -1)], 1)


def _by_rows(values: np.ndarray, tiles: int) -> np.ndarray:
    """What each row has of each block, (rows, blocks), as (tiles, blocks, 16)."""
    return values.reshape(tiles, TILE, -1).transpose(0, 2, 1)


def _tiles_of(form: Format, scale: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """Tiles whose header is float32 `scale`. parts: of the blocks, uint8 of shape (tiles, blocks, bytes)."""
    header = np.ascontiguousarray(scale, np.float32).view(np.uint8).reshape(-1, form.header_bytes)
    return np.concatenate([header, np.concatenate(parts, 2).reshape(len(header), -1)], 1)


def _pairs(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 (rows, columns) as the codes and the positions of q4n: uint8 of shapes (tiles, blocks, 128), (.., 64).
    Raises ValueError where a quad has more than two that are not 0."""
    rows, columns = q.shape
    quads = q.reshape(rows, -1, 4)
    order = np.argsort(quads == 0, -1, kind="stable")
    codes = np.take_along_axis(quads, order, -1)
    if codes[..., 2:].any():
        raise ValueError("more than 2 of 4 neighbouring weights are not 0")

    def vectors(of_pairs: np.ndarray) -> np.ndarray:
        shaped = of_pairs[..., :2].astype(np.uint8).reshape(rows // TILE, TILE, columns // BLOCK, 4, 4)
        return shaped.transpose(0, 2, 3, 1, 4).reshape(rows // TILE, columns // BLOCK, 4, 64)

    nibbles, positions = vectors(codes + 8), vectors(order)
    return ((nibbles[:, :, 0::2] | nibbles[:, :, 1::2] << 4).reshape(*nibbles.shape[:2], 128),
            positions[:, :, 0] | positions[:, :, 1] << 2 | positions[:, :, 2] << 4 | positions[:, :, 3] << 6)


def unpack(form: Format, tiles: np.ndarray) -> np.ndarray:
    """The weights of a packed matrix: float32 of shape (tiles * 16, blocks * 32). The inverse of `pack`."""
    count = tiles.shape[0]
    if form.activation is Activation.FLOAT:
        kind = np.float16 if form.name == "f16" else np.float32
        values = np.ascontiguousarray(tiles).view(kind).reshape(count, -1, TILE)
        return values.transpose(0, 2, 1).reshape(count * TILE, -1).astype(np.float32)
    body = tiles[:, form.header_bytes:].reshape(count, -1, form.block_bytes)
    blocks = body.shape[1]
    if form.name == "q8":
        quads = (body[:, :, :512] ^ 0x80).view(np.int8).reshape(count, blocks, 8, TILE, 4)
        s = _bf16_values(np.ascontiguousarray(body[:, :, 512:])).transpose(0, 2, 1)[..., None]
        q = quads.transpose(0, 3, 1, 2, 4).reshape(count, TILE, blocks, BLOCK)
        return (q * s).reshape(count * TILE, -1)
    if form.name == "q4n":
        return _of_pairs(tiles, body)
    if form.name in ("q2", "ternary"):
        quads = _of_two_bits(body[:, :, :128])
    elif form.name == "q3":
        lowest = np.stack([body[:, :, :64] >> n // 2 + 4 * (n % 2) & 1 for n in range(8)], 2)
        quads = _of_two_bits(body[:, :, 64:192]) << 1 | lowest
    else:
        pairs = body[:, :, :256].reshape(count, blocks, 4, 1, 64)
        quads = np.concatenate([pairs & 15, pairs >> 4], 3).reshape(count, blocks, 8, 64)
        if form.name == "q6":
            plane = body[:, :, 256:384].reshape(count, blocks, 2, 1, 64)
            high = np.concatenate([plane >> shift & 3 for shift in (0, 2, 4, 6)], 3).reshape(count, blocks, 8, 64)
            quads = quads | high << 4
    q = quads.reshape(count, blocks, 8, TILE, 4).transpose(0, 3, 1, 2, 4).reshape(count, TILE, blocks, BLOCK)
    if form.name == "ternary":
        s = np.ascontiguousarray(body[:, :, 128:]).view(np.float16).astype(np.float32).transpose(0, 2, 1)
        return (_float_scales(tiles) * s[..., None] * (q.astype(np.int8) - 1)).reshape(count * TILE, -1)
    s, m = (body[:, :, form.block_bytes - 32 + at: form.block_bytes - 16 + at].transpose(0, 2, 1)[..., None]
            .astype(np.float32) for at in (0, 16))
    scale, minimum = (_bf16_values(np.ascontiguousarray(tiles[:, at:at + 32]))[:, :, None, None] for at in (0, 32))
    return (scale * s * q - minimum * m).reshape(count * TILE, -1)


def _float_scales(tiles: np.ndarray) -> np.ndarray:
    """D of ternary and q4n: float32 of shape (tiles, 16, 1, 1)."""
    return np.ascontiguousarray(tiles[:, :64]).view(np.float32)[:, :, None, None]


def _of_pairs(tiles: np.ndarray, body: np.ndarray) -> np.ndarray:
    """The weights of q4n, from its tiles and their blocks."""
    count, blocks = body.shape[:2]

    def by_rows(vectors: np.ndarray) -> np.ndarray:
        return vectors.reshape(count, blocks, 4, TILE, 2, 2).transpose(0, 3, 1, 2, 4, 5).reshape(
            count, TILE, blocks, 8, 2, 1)

    codes = body[:, :, :128].reshape(count, blocks, 2, 1, 64)
    nibbles = by_rows(np.concatenate([codes & 15, codes >> 4], 3)).astype(np.int8) - 8
    positions = by_rows(np.stack([body[:, :, 128:192] >> shift & 3 for shift in (0, 2, 4, 6)], 2))
    q = np.where(positions == np.arange(4), nibbles, 0).sum(-2).reshape(count, TILE, blocks, BLOCK)
    s = body[:, :, 192:].transpose(0, 2, 1)[..., None].astype(np.float32)
    return (_float_scales(tiles) * s * q.astype(np.float32)).reshape(count * TILE, -1)


_UPPER, _LOWER = np.uint8(0xCC), np.uint8(0x33)
_DETAIL_FIRST = ("q3", "q6")
"""Blocks that are their detail and then their base."""


def planes(form: Format, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of a format that is split, uint8 of shape (..., block_bytes), as their planes: uint8 of shapes
    (..., base_bytes) and (..., detail_bytes)."""
    shape = blocks.shape[:-1]
    if form.name in _DETAIL_FIRST:
        return blocks[..., form.detail_bytes:], blocks[..., :form.detail_bytes]
    vectors = blocks[..., :2 * form.detail_bytes].reshape(*shape, -1, 64)
    even, odd = vectors[..., 0::2, :], vectors[..., 1::2, :]
    if form.name != "q8":
        base, detail = even & _UPPER | (odd & _UPPER) >> 2, (even & _LOWER) << 2 | odd & _LOWER
    else:
        base, detail = even >> 4 | odd & 0xF0, even & 15 | odd << 4
    rest = blocks[..., vectors.shape[-2] * 64:]
    return np.concatenate([base.reshape(*shape, -1), rest], -1), detail.reshape(*shape, -1)


def whole(form: Format, base: np.ndarray, detail: np.ndarray) -> np.ndarray:
    """The blocks whose planes these are; the inverse of `planes`."""
    shape = base.shape[:-1]
    if form.name in _DETAIL_FIRST:
        return np.concatenate([detail, base], -1)
    length = form.detail_bytes
    upper, lower = (part.reshape(*shape, -1, 64) for part in (base[..., :length], detail))
    if form.name != "q8":
        even, odd = upper & _UPPER | lower >> 2 & _LOWER, upper << 2 & _UPPER | lower & _LOWER
    else:
        even, odd = upper << 4 | lower & 15, upper & 0xF0 | lower >> 4
    vectors = np.stack([even, odd], -2).reshape(*shape, -1)
    return np.concatenate([vectors, base[..., length:]], -1)
