"""Block-sparse weights of 4 bits, q4b, as they stand in memory: what block_sparse.py computes with.

A tile of 16 rows is 16 float32 D and then its blocks, 32 columns each; those of a group of neurons that belong to the
down projection are the blocks of one column of 32, a tile each, and the D stand apart. Of a block only the columns are
there that have a weight in any of the 16 rows: ceil(columns / 4) *quads*. Blocks without any are left out. So they have
different sizes:

- 8 uint32: how many blocks have 1, 2 ... 8 quads;
- in groups of neurons, a uint16 for each tile: where its block begins, in steps of 8 bytes from here, or 0 where it is
  empty; zeros to a multiple of 8;
- the blocks by their number of quads, and then by number: 16 uint8 s; a uint32, whose bit c is 1 where column c is
  there; its number as uint16; 2 zeros; 32 bytes for each quad. The weight in row r of column i of a quad is the low
  nibble of byte 4r + i for r < 8, the high nibble of byte 4(r - 8) + i for the others; it is D*s*q, q being -8 to 7;
- zeros up to the size of the largest tile of the matrix, or group of the layer.
"""

import numpy as np

from .formats import BLOCK, BLOCK_HEAD, BLOCK_SPARSE, COUNTS, MOST_ROOM, QUAD, TILE, Format, Quantized

_HEADER = BLOCK_SPARSE.header_bytes


def _quads_of(there: np.ndarray) -> np.ndarray:
    """How many quads blocks have, of (..., blocks * 32) bool: int64 (..., blocks)."""
    columns = np.count_nonzero(there.reshape(*there.shape[:-1], -1, BLOCK), -1)
    return -(-columns // 4)


def _size(quads: np.ndarray) -> int:
    """The most bytes that the blocks of a row of (rows, blocks) take."""
    return int(np.where(quads, BLOCK_HEAD + QUAD * quads, 0).sum(-1).max(initial=0))


def columns_there(values: np.ndarray) -> np.ndarray:
    """Which columns of each tile have a weight that is not 0: (rows, columns) to bool (tiles, columns of whole
    blocks)."""
    rows, columns = values.shape
    filled = np.pad(values != 0, ((0, -rows % TILE), (0, -columns % BLOCK)))
    return np.any(filled.reshape(-1, TILE, filled.shape[1]), axis=1, keepdims=True)[:, 0]


def room_of_tiles(there: np.ndarray) -> int:
    """What the largest tile takes, of `columns_there`."""
    return _HEADER + COUNTS + _size(_quads_of(there))


def room_of_groups(there: np.ndarray) -> int:
    """What the down blocks of the largest group take, of `columns_there` of the down projection."""
    return _groups_head(len(there)) + _size(_quads_of(there).T)


def tile_rooms(columns: int) -> range:
    """The sizes that tiles of so many columns can have."""
    least = _HEADER + COUNTS
    return range(least, least + -(-columns // BLOCK) * BLOCK_SPARSE.block_bytes + 1, 8)


def group_rooms(tiles: int) -> range:
    """The sizes that the down blocks of a group can have."""
    least = _groups_head(tiles)
    return range(least, least + tiles * BLOCK_SPARSE.block_bytes + 1, 8)


def _groups_head(tiles: int) -> int:
    return COUNTS + -(-2 * tiles // 8) * 8


def packed_loosely(weights: Quantized) -> np.ndarray:
    """A matrix as tiles of blocks that have the room of full ones, left to right: uint8 of shape (tiles, 64 + blocks *
    280). Rows and columns are whole tiles and blocks."""
    rows, columns = weights.q.shape
    tiles, blocks = rows // TILE, columns // BLOCK
    q = weights.q.reshape(tiles, TILE, blocks, BLOCK).transpose(0, 2, 1, 3)
    there = q.any(2)
    order = np.argsort(~there, -1, kind="stable")
    codes = np.take_along_axis(q, order[:, :, None], 3) & 15
    # (tile, block, half of the rows, quad, row, column in quad)
    halves = codes.reshape(tiles, blocks, 2, 8, 8, 4).transpose(0, 1, 2, 4, 3, 5).reshape(tiles, blocks, 2, 8, QUAD)
    packed = np.zeros((tiles, blocks, BLOCK_SPARSE.block_bytes), np.uint8)
    packed[:, :, :TILE] = weights.s.reshape(tiles, TILE, blocks).transpose(0, 2, 1)
    packed[:, :, TILE:TILE + 4] = np.packbits(there, axis=-1, bitorder="little")
    packed[:, :, TILE + 4:TILE + 6] = np.arange(blocks, dtype="<u2").view(np.uint8).reshape(blocks, 2)
    packed[:, :, BLOCK_HEAD:] = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(tiles, blocks, -1).view(np.uint8)
    assert weights.scale is not None
    header = np.ascontiguousarray(weights.scale, "<f4").view(np.uint8).reshape(tiles, _HEADER)
    return np.concatenate([header, packed.reshape(tiles, -1)], 1)


def tiles_of_size(form: Format, loose: np.ndarray) -> np.ndarray:
    """The tiles of `packed_loosely` in a sized format: uint8 of shape (tiles, room)."""
    blocks = loose[:, _HEADER:].reshape(len(loose), -1, BLOCK_SPARSE.block_bytes)
    found = np.zeros((len(loose), form.room), np.uint8)
    found[:, :_HEADER] = loose[:, :_HEADER]
    for tile, of_tile in zip(found, blocks, strict=True):
        _fill(tile[_HEADER:], of_tile, 0)
    return found


def groups_of_size(form: Format, blocks: np.ndarray) -> np.ndarray:
    """The down blocks of groups in a sized format, from uint8 of shape (groups, tiles, 280): (groups, room)."""
    tiles = blocks.shape[1]
    numbered = blocks.copy()
    numbered[:, :, TILE + 4:TILE + 6] = np.arange(tiles, dtype="<u2").view(np.uint8).reshape(tiles, 2)
    found = np.zeros((len(blocks), form.room), np.uint8)
    for group, of_group in zip(found, numbered, strict=True):
        _fill(group, of_group, tiles)
    return found


def _fill(room: np.ndarray, blocks: np.ndarray, places: int) -> None:
    """Put blocks, (blocks, 280), into a room of bytes in their order. places: of how many it is told where they are."""
    quads = _quads_of(np.unpackbits(np.ascontiguousarray(blocks[:, TILE:TILE + 4]), axis=1))[:, 0]
    room[:COUNTS] = np.bincount(quads, minlength=9)[1:].astype("<u4").view(np.uint8)
    at = _groups_head(places)
    where = np.zeros(places, "<u2")
    for count in range(1, 9):
        some, size = np.flatnonzero(quads == count), BLOCK_HEAD + QUAD * count
        room[at:at + len(some) * size] = blocks[some, :size].reshape(-1)
        if places:
            where[some] = (at + size * np.arange(len(some))) // 8
        at += len(some) * size
    room[COUNTS:COUNTS + 2 * places] = where.view(np.uint8)


def made_up(form: Format, blocks: int, places: int = 0) -> np.ndarray:
    """A tile of so many blocks, or what a group has of as many tiles (`places`), with weights that are 0 and about as
    many columns as its size says: uint8 (room,). For measuring."""
    head = _groups_head(places) + (0 if places else _HEADER)
    quads = np.clip(((form.room - head) / max(blocks, 1) - BLOCK_HEAD) // QUAD, 0, 8).astype(int)
    some = np.zeros((blocks, BLOCK_SPARSE.block_bytes), np.uint8)
    some[:, TILE:TILE + 4] = np.packbits(np.arange(BLOCK) < 4 * quads, bitorder="little")
    some[:, TILE + 4:TILE + 6] = np.arange(blocks, dtype="<u2").view(np.uint8).reshape(blocks, 2)
    found = np.zeros(form.room, np.uint8)
    _fill(found[head - _groups_head(places):], some, places)
    return found


def weights_of(tiles: np.ndarray, columns: int) -> np.ndarray:
    """The weights of a packed matrix, float32 of shape (tiles * 16, columns of whole blocks)."""
    blocks = -(-columns // BLOCK)
    found = np.zeros((len(tiles), TILE, blocks, BLOCK), np.float32)
    for tile, of_tile in zip(tiles, found, strict=True):
        scale, at = tile[:_HEADER].view("<f4")[:, None], _HEADER + COUNTS
        for quads, many in enumerate(tile[_HEADER:at].view("<u4"), 1):
            for _ in range(many):
                block = tile[at:at + BLOCK_HEAD + QUAD * quads]
                there = np.unpackbits(block[TILE:TILE + 4], bitorder="little").astype(bool)
                codes = block[BLOCK_HEAD:].reshape(quads, 8, 4)
                q = (np.concatenate([codes & 15, codes >> 4], 1) ^ 8).astype(np.float32) - 8
                q = q.transpose(1, 0, 2).reshape(TILE, -1)[:, :np.count_nonzero(there)]
                of_tile[:, int(block[TILE + 4:TILE + 6].view("<u2")[0]), there] = scale * block[:TILE, None] * q
                at += len(block)
    return found.reshape(len(tiles) * TILE, blocks * BLOCK)


assert MOST_ROOM // 8 <= 1 << 16
