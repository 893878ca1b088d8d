"""What guessing and checking take, and what that says of how far to guess. Everything is measured while it happens."""

_FADE = 0.85
"""What a measurement still counts when the next of its kind comes."""
_TRUST = 4.0
"""How strongly the slope that is assumed counts until another was measured."""
STREAMED, IN_MEMORY, OF_EXPERTS = 0.0, 0.12, 0.6
"""What checking a token more takes, in passes for one, as it is assumed at first: where the same weights are read for
many tokens as for one, where all are in memory, and where each token needs experts of its own, from flash or memory
(two tokens need 1.6 times the experts of one: docs/notes/experts.md)."""


class _Average:
    """A mean in which older values fade; None before the first."""

    def __init__(self) -> None:
        self._sum = self._count = 0.0

    def add(self, value: float) -> None:
        self._sum, self._count = self._sum * _FADE + value, self._count * _FADE + 1

    @property
    def value(self) -> float | None:
        return self._sum / self._count if self._count else None


class Costs:
    """Seconds of a draft and of checks, and the tokens a second that came of them.

    A check of one token alone is a pass as without speculation. Those of more lie on a line through what was measured:
    nearly flat where weights are streamed, since the same bytes are read for many tokens as for one. slope: of that
    line, in passes for one token, until another was measured: STREAMED, IN_MEMORY, or OF_EXPERTS.
    """

    def __init__(self, slope: float) -> None:
        self._draft, self._alone = _Average(), _Average()
        self._assumed = slope
        self._weight = self._n = self._nn = self._t = self._nt = 0.0
        self._tokens = self._seconds = 0.0

    def drafted(self, seconds: float) -> None:
        self._draft.add(seconds)

    def checked(self, tokens: int, seconds: float) -> None:
        """A pass for so many tokens took so long."""
        if tokens == 1:
            self._alone.add(seconds)
            return
        for name, value in (("_weight", 1), ("_n", tokens), ("_nn", tokens * tokens), ("_t", seconds),
                            ("_nt", tokens * seconds)):
            setattr(self, name, getattr(self, name) * _FADE + value)

    def came(self, tokens: int, seconds: float) -> None:
        """A round of guessing and checking brought so many tokens in all this time."""
        self._tokens, self._seconds = self._tokens * _FADE + tokens, self._seconds * _FADE + seconds

    @property
    def draft(self) -> float:
        """Seconds of a draft; 0 as long as it was not measured, so that it will be."""
        return self._draft.value or 0.0

    @property
    def known(self) -> bool:
        """Whether a pass for a token alone was measured."""
        return self._alone.value is not None

    def check(self, tokens: int) -> float:
        """Seconds of a pass for so many tokens."""
        alone = self._alone.value or 0.0
        assumed = self._assumed * alone
        if tokens == 1 or not self._weight:
            return alone + assumed * (tokens - 1)
        # The pass for one token is a point of the line too, with a part of the weight of the others.
        weight, n, t = 1.25 * self._weight, self._n + 0.25 * self._weight, self._t + 0.25 * self._weight * alone
        mean_n, mean_t = n / weight, t / weight
        spread = self._nn + 0.25 * self._weight - n * mean_n
        together = self._nt + 0.25 * self._weight * alone - n * mean_t
        slope = max((together + _TRUST * assumed) / (spread + _TRUST), 0.0)
        return max(mean_t + slope * (tokens - mean_n), alone if self._assumed else 0.0)

    @property
    def rate(self) -> float:
        """Tokens a second that have to be beaten: of the rounds so far, or without guessing."""
        plain = 1 / self._alone.value if self._alone.value else 0.0
        return max(self._tokens / self._seconds if self._seconds else 0.0, plain)
