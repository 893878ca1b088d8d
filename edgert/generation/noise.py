"""Random numbers that are a function of what they are for: a seed, a position and a token."""

import numpy as np

_BITS = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
"""2 to the power of 64 over the golden ratio, made odd: what splitmix64 counts in."""


def gumbel(seed: int, position: int, tokens: np.ndarray) -> np.ndarray:
    """Noise of the standard Gumbel distribution, -log(-log(u)), a value for each token: float64 of the shape of tokens.

    Arguments as in `uniform`.
    """
    u = uniform(seed, position, tokens)
    np.negative(np.log(u, out=u), out=u)
    return np.negative(np.log(u, out=u), out=u)


def uniform(seed: int, position: int, tokens: np.ndarray) -> np.ndarray:
    """Numbers above 0 and below 1, float64, evenly distributed and as good as independent, a value for each token.

    seed, position: whole numbers, of which the lowest 64 bits count. tokens: token ids, integers of any shape.
    It is a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): nothing is kept
    from one call to the next. Seed and position name a sequence of splitmix64 (Steele, Lea and Flood 2014, "Fast
    splittable pseudorandom number generators"), and the token is the place in it.
    """
    start = _mixed(_mixed(seed + _STEP) + position * _STEP)
    bits = tokens.astype(np.uint64)
    bits *= np.uint64(_STEP)
    bits += np.uint64(start)
    _mix(bits)
    return _fractions(bits)


def _fractions(bits: np.ndarray) -> np.ndarray:
    """The middles of the 2 to the power of 52 equal parts from 0 to 1, which float64 holds exactly."""
    u = (bits >> np.uint64(12)).astype(np.float64)
    u += 0.5
    u *= 2.0 ** -52
    return u


def _mixed(value: int) -> int:
    """One whole number, mixed."""
    bits = np.array([value & _BITS], np.uint64)
    _mix(bits)
    return int(bits[0])


def _mix(bits: np.ndarray) -> None:
    """Mix 64-bit numbers in place, with the finalizer of splitmix64 (Stafford's "Mix13")."""
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
