"""How a group of 32 neurons stands in memory or in a file: whole, or as its two planes (formats.py).

A group is, one after another, the 2 tiles of its gate rows (if it has a gate), the 2 of its up rows, then for every 16
rows of the result one block of the down projection, whose tile headers stand apart. Its base is the same of base
planes; its detail the same of detail planes, without tile headers. Both parts of a group whose format is not split are
in its base.
"""

from typing import NamedTuple

from .formats import BLOCK, TILE, Format

GROUP_ALIGNMENT = 64


class GroupPart(NamedTuple):
    """Where the down blocks of a group, or of one of its planes, begin, and its length; in bytes."""

    down: int
    length: int


class GroupLayout(NamedTuple):
    """Of a layer's groups: whole ones, and their planes. detail.length is 0 where neither format is split."""

    whole: GroupPart
    base: GroupPart
    detail: GroupPart


def row_tiles_of(*, gated: bool) -> int:
    """How many tiles of rows a group has: those of gate and up, or of up alone."""
    return (2 if gated else 1) * BLOCK // TILE


def group_layout(hidden_size: int, gate_up: Format, down: Format, *, gated: bool = True) -> GroupLayout:
    """The layout of groups of these formats."""
    blocks, tiles = gate_up.blocks(hidden_size), -(-hidden_size // TILE)

    def part(tile: int, down_blocks: int) -> GroupPart:
        start = row_tiles_of(gated=gated) * tile
        return GroupPart(start, -(-(start + down_blocks) // GROUP_ALIGNMENT) * GROUP_ALIGNMENT)

    whole, details = (gate_up.tile_bytes(hidden_size), down.down_bytes(tiles)), (blocks * gate_up.detail_bytes,
                                                                              tiles * down.detail_bytes)
    base = (whole[0] - details[0], whole[1] - details[1])
    return GroupLayout(part(*whole), part(*base), part(*details))
