"""Matrices that come sparse, and the format that holds each in the fewest bytes.

Where of every four neighbouring weights at most two are not zero, 2:4 sparse weights (q4n) hold those alone; where all
16 rows of a tile have zeros in a column, block-sparse weights (q4b) leave it out. What stands in a bundle, and where,
is known before anything is written, so it is found here by a pass over the matrices in question, which a look at a few
of their tiles narrows down.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgert.kernels.block_packing import columns_there, room_of_groups, room_of_tiles
from edgert.kernels.formats import BLOCK_SPARSE, FORMATS, MOST_ROOM, TILE
from edgert.models.config import Config
from edgert.models.tensors import Role, TensorSpec, feed_forward_parts

from .quantizer import two_of_four
from .source import Source

_PAIRS = FORMATS["q4n"]
_PAIRS_FOR = {name for name in ("q3", "q4") if FORMATS[name].block_bytes > _PAIRS.block_bytes}
"""Formats of about as many bits that q4n takes the place of."""
_BLOCKS_FOR = {"q4": "q4", "q6": "q4", "q4n": "q4n"}
"""Formats that q4b takes the place of, each with that to whose bytes it is held: instead of q6 it is not taken where q4
would be about as small, as a model that was pruned so far has lost more than 2 bits hold."""
_MARGIN = 0.85
"""What it may be of those bytes: it costs more instructions."""
_ROWS_AT_ONCE = 64 * TILE


def sparse_formats(source: Source, formats: Mapping[str, str]) -> dict[str, str]:
    """The formats of the matrices that are smaller in a sparse one, by name. formats: what they would have. Raises
    SourceError."""
    config, found = source.config, dict[str, str]()
    for specs in _of_one_format(config):
        forms, sparse = [formats[spec.name] for spec in specs], None
        if _PAIRS_FOR.issuperset(forms) and all(_Matrix(source, spec).in_pairs() for spec in specs):
            forms, sparse = [_PAIRS.name] * len(specs), _PAIRS.name
        # Neurons and experts that are read one by one have no sizes of their own, nor have rows of embeddings.
        if (not config.selective and _BLOCKS_FOR.keys() >= set(forms)
                and specs[0].role not in (Role.EMBEDDING, Role.POSITION)):
            sparse = _in_blocks(source, specs, _BLOCKS_FOR[forms[-1]]) or sparse
        if sparse is not None:
            found |= {spec.name: sparse for spec in specs}
    return found


def told(source: Source, found: Mapping[str, str]) -> list[str]:
    """Sentences about what is packed sparse."""
    matrices = sum(spec.is_matrix for spec in source.config.tensors())
    pairs = sum(form == _PAIRS.name for form in found.values())
    blocks = len(found) - pairs
    return [*([f"{pairs} of {matrices} matrices are 2:4 sparse, and are packed so ({_PAIRS.name})"] if pairs else []),
            *([f"{blocks} of {matrices} matrices are sparse in columns of {TILE} rows, and are packed so (q4b)"]
              if blocks else [])]


def _of_one_format(config: Config) -> Iterator[Sequence[TensorSpec]]:
    """The matrices of a model that a bundle can have in sparse formats, those together that have one format: gate and
    up, where they are in neuron groups; each of the others alone."""
    matrices = [spec for spec in config.tensors() if spec.is_matrix]
    yield from ([spec] for spec in matrices if spec.role not in config.in_groups)
    if not config.sparse:  # whose neurons stand one by one
        for part in feed_forward_parts(matrices):
            yield part.by_rows
            yield [part.down]


def _in_blocks(source: Source, specs: Sequence[TensorSpec], dense: str) -> str | None:
    """The q4b that holds these matrices; None where it is not smaller by enough than `dense`."""
    there = []
    for spec in specs:
        if (columns := _Matrix(source, spec).columns_there()) is None:
            return None
        there.append(columns)
    if specs[0].role is Role.DOWN:
        room, size = room_of_groups(there[0]), FORMATS[dense].down_bytes(len(there[0]))
    else:
        room, size = max(map(room_of_tiles, there)), FORMATS[dense].tile_bytes(specs[0].shape[1])
    return BLOCK_SPARSE.of_size(room).name if room <= min(_MARGIN * size, MOST_ROOM) else None


class _Matrix:
    """A matrix of a source. Raises SourceError."""

    def __init__(self, source: Source, spec: TensorSpec) -> None:
        self._tensor, (self._rows, self._columns) = source.tensors[spec.name], spec.shape

    def in_pairs(self) -> bool:
        """Whether all of it is 2:4 sparse."""
        return all(map(two_of_four, self._few())) and all(map(two_of_four, self._all()))

    def columns_there(self) -> np.ndarray | None:
        """As kernels.block_packing.columns_there; None where a few tiles say that it is not sparse in columns."""
        few = map(columns_there, self._few())
        if np.mean([each[:, :self._columns].mean() for each in few]) > _MARGIN:
            return None
        return np.concatenate(list(map(columns_there, self._all())))

    def _few(self) -> Iterator[np.ndarray]:
        """Tiles at its beginning, in its middle and at its end."""
        for first in {0, self._rows // 2 // TILE * TILE, (self._rows - 1) // TILE * TILE}:
            yield self._read(first, TILE)

    def _all(self) -> Iterator[np.ndarray]:
        """All of it, some tiles at a time."""
        for first in range(0, self._rows, _ROWS_AT_ONCE):
            yield self._read(first, _ROWS_AT_ONCE)

    def _read(self, first: int, count: int) -> np.ndarray:
        return self._tensor.read(first, min(first + count, self._rows))
