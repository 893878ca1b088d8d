"""Matrices of which at least 2 in 4 neighbouring weights are zero, and what holds them in fewer bytes (q4n).

What stands in a bundle, and where, is known before anything is written: so such matrices are found by a pass over those
in question, which a look at a few rows narrows down.
"""

from collections.abc import Iterable, Mapping

from edgert.kernels.formats import FORMATS, TILE
from edgert.models.tensors import TensorSpec, feed_forward_parts

from .quantizer import two_of_four
from .source import Source

_PAIRS = FORMATS["q4n"]
_REPLACED = {name for name in ("q3", "q4") if FORMATS[name].block_bytes > _PAIRS.block_bytes}
"""Formats of about as many bits that q4n takes the place of."""
_VALUES_AT_ONCE = 16 << 20


def pair_formats(source: Source, formats: Mapping[str, str]) -> dict[str, str]:
    """The formats of the matrices that are 2:4 sparse throughout, by name, where that is smaller. formats: what they
    would have. Raises SourceError."""
    config = source.config
    tensors = [spec for spec in config.tensors() if spec.is_matrix]
    together: list[tuple[TensorSpec, ...]] = [(spec,) for spec in tensors if spec.role not in config.in_groups]
    if not config.sparse:  # whose neurons stand one by one, and have no such format
        for part in feed_forward_parts(tensors):
            together += [tuple(part.by_rows), (part.down,)]
    return {spec.name: _PAIRS.name for some in together if _all_sparse(source, some, formats) for spec in some}


def told(source: Source, found: Mapping[str, str]) -> str:
    """A sentence about what is packed so."""
    matrices = sum(spec.is_matrix for spec in source.config.tensors())
    return f"{len(found)} of {matrices} matrices are 2:4 sparse, and are packed so ({_PAIRS.name})"


def _all_sparse(source: Source, some: Iterable[TensorSpec], formats: Mapping[str, str]) -> bool:
    """Whether these matrices, which have one format, can all be q4n."""
    return all(formats[spec.name] in _REPLACED for spec in some) and all(_is_sparse(source, spec) for spec in some)


def _is_sparse(source: Source, spec: TensorSpec) -> bool:
    (rows, columns), tensor = spec.shape, source.tensors[spec.name]
    for first in {0, rows // 2, max(rows - TILE, 0)}:
        if not two_of_four(tensor.read(first, min(first + TILE, rows))):
            return False
    step = max(_VALUES_AT_ONCE // columns, 1)
    return all(two_of_four(tensor.read(first, min(first + step, rows))) for first in range(0, rows, step))
