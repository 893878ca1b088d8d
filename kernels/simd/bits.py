"""Bits of bytes: the planes of integer weights (formats.py) put together, or the upper one taken alone."""

from .vector import V8, V32, constant, i8x64, operation


def _shifted(b, value, left):
    """Each byte `left` bits up, or down where that is negative; bits of its neighbour come in."""
    if left == 0:
        return value
    words = b.bitcast(value, V32)
    return b.bitcast(b.shl(words, constant(V32, left)) if left > 0 else b.lshr(words, constant(V32, -left)), V8)


def _joining(mask, upper_left, lower_left):
    """A word: the bits of `upper` in the mask and those of `lower` in the rest, each shifted first."""
    def emit(b, upper, lower):
        return b.or_(b.and_(_shifted(b, upper, upper_left), constant(V8, mask)),
                     b.and_(_shifted(b, lower, lower_left), constant(V8, 0xFF & ~mask)))

    emit.__name__ = f"joining_{mask}_{upper_left}_{lower_left}"
    return operation(i8x64, i8x64, i8x64)(emit)


even_of_2, odd_of_2 = _joining(0xCC, 0, -2), _joining(0xCC, 2, 0)
"""Two vectors of nibbles from a vector of each plane: 2 bits and 2 bits (q4)."""
even_of_4, odd_of_4 = _joining(0xF0, 4, 0), _joining(0xF0, 0, -4)
"""Two vectors of bytes from a vector of each plane: 4 bits and 4 bits (q8)."""


def _alone(mask, left, added):
    """A word: the bits of the mask of a shifted value, with constant bits added."""
    def emit(b, value):
        bits = b.and_(_shifted(b, value, left), constant(V8, mask))
        return b.or_(bits, constant(V8, added)) if added else bits

    emit.__name__ = f"alone_{mask}_{left}_{added}"
    return operation(i8x64, i8x64)(emit)


upper_2_of = tuple(_alone(12, left, 0) for left in (0, -4, 2, -2))
"""From a vector of the base plane of q4: its four quads, whose lower 2 bits are 0."""
upper_4_of = tuple(_alone(0xF0, left, 8) for left in (4, 0))
"""From a vector of the base plane of q8: its two quads, whose lower 4 bits are 8."""


def _nibbles_of_3(pair):
    """A word: two quads in nibbles, 2 q each, from a vector of the upper 2 bits of q and that of the lowest (q3)."""
    def emit(b, upper, lowest):
        return b.or_(b.and_(_shifted(b, upper, 2 * (pair % 2)), constant(V8, 0xCC)),
                     b.and_(_shifted(b, lowest, 1 - pair), constant(V8, 0x22)))

    emit.__name__ = f"nibbles_of_3_{pair}"
    return operation(i8x64, i8x64, i8x64)(emit)


nibbles_of_3 = tuple(_nibbles_of_3(pair) for pair in range(4))
"""By pair of quads."""
