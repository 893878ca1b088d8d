"""Matrices that are sparse, and the format that holds them in the fewest bytes.

Where all 16 rows of a tile have zeros in a column, block-sparse weights (q4b) leave it out. How long their tiles are is
in the layout of a bundle, so it is found here before anything is written, by a pass over the matrices in question.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from edgert.kernels.block_packing import columns_there, room_of_groups, room_of_tiles
from edgert.kernels.formats import BLOCK_SPARSE, FORMATS, MOST_ROOM, TILE, Format
from edgert.models.tensors import FeedForward, Role, TensorSpec, feed_forward_parts

from .source import Source

_REPLACED = {"q4": "q4", "q6": "q4", "q4n": "q4n"}
"""Formats that q4b takes the place of, each with that to whose bytes it is held: instead of q6 it is not taken where q4
would be about as small, as a model that was pruned so far has lost more than 2 bits hold."""
_MARGIN = 0.85
"""What it may be of those bytes: it costs more instructions."""
_ROWS_AT_ONCE = 64 * TILE


def sparse_formats(source: Source, formats: Mapping[str, str]) -> dict[str, str]:
    """The formats of the matrices that are smaller in a sparse one, by name. formats: what they would have. Raises
    SourceError."""
    config = source.config
    if config.selective:
        return {}  # neurons and experts one by one
    tensors = list(config.tensors())
    found: dict[str, str] = {}
    for part in feed_forward_parts(tensors, sparse=False):
        found |= _of_neurons(source, part, formats)
    for spec in tensors:
        embedding = spec.role in (Role.EMBEDDING, Role.POSITION)
        if spec.is_matrix and not embedding and spec.role not in config.in_groups and formats[spec.name] in _REPLACED:
            there = _columns_there(source, spec)
            if there is not None and (form := _of_size(room_of_tiles(there), _dense_tile(spec, formats))):
                found[spec.name] = form
    return found


def _of_neurons(source: Source, part: FeedForward, formats: Mapping[str, str]) -> dict[str, str]:
    """Of the matrices of a feed-forward part: gate and up have one format."""
    found: dict[str, str] = {}
    if all(formats[spec.name] in _REPLACED for spec in part.by_rows):
        rows = [_columns_there(source, spec) for spec in part.by_rows]
        there = [each for each in rows if each is not None]
        room = max(map(room_of_tiles, there)) if len(there) == len(rows) else MOST_ROOM
        if form := _of_size(room, _dense_tile(part.up, formats)):
            found |= {spec.name: form for spec in part.by_rows}
    down = _columns_there(source, part.down) if formats[part.down.name] in _REPLACED else None
    if down is not None and (form := _of_size(room_of_groups(down), _dense(part.down, formats).down_bytes(len(down)))):
        found[part.down.name] = form
    return found


def _dense(spec: TensorSpec, formats: Mapping[str, str]) -> Format:
    return FORMATS[_REPLACED[formats[spec.name]]]


def _dense_tile(spec: TensorSpec, formats: Mapping[str, str]) -> int:
    return _dense(spec, formats).tile_bytes(spec.shape[1])


def _of_size(room: int, dense: int) -> str | None:
    return BLOCK_SPARSE.of_size(room).name if room <= min(_MARGIN * dense, MOST_ROOM) else None


def _columns_there(source: Source, spec: TensorSpec) -> np.ndarray | None:
    """`columns_there` of a matrix; None where a few of its tiles say that it is not sparse."""
    rows, tensor = spec.shape[0], source.tensors[spec.name]

    def of(first: int, last: int) -> np.ndarray:
        return columns_there(tensor.read(first, min(last, rows)))

    some = [of(first, first + TILE) for first in {0, rows // 2 // TILE * TILE, (rows - 1) // TILE * TILE}]
    if np.mean([each[:, :spec.shape[1]].mean() for each in some]) > _MARGIN:
        return None

    def parts() -> Iterator[np.ndarray]:
        for first in range(0, rows, _ROWS_AT_ONCE):
            yield of(first, first + _ROWS_AT_ONCE)

    return np.concatenate(list(parts()))


def told(source: Source, sparse: Mapping[str, str]) -> str:
    """A sentence about what is packed sparse."""
    matrices = [spec for spec in source.config.tensors() if spec.is_matrix]
    return f"{len(sparse)} of {len(matrices)} matrices are sparse in columns of {TILE} rows, and are packed so (q4b)"
