"""What guessing and checking take, and what that says of how far to guess. Everything is measured while it happens."""

_FADE = 0.85
"""What a measurement still counts when the next of its kind comes."""
_FLATNESS = 8.0
"""How strongly checking is assumed to take as long for many tokens as for few, until it was measured otherwise."""


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

    A check of one token alone is a pass as without speculation. Those of more are a line through what was measured,
    which takes into account that a pass reads the same weights for all: it is flat where reading takes longest.
    """

    def __init__(self) -> None:
        self._draft, self._alone = _Average(), _Average()
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
        if tokens == 1 or not self._weight:
            return alone
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        spread = self._nn - self._n * mean_n
        slope = max((self._nt - self._n * mean_t) / (spread + _FLATNESS), 0.0)
        return mean_t + slope * (tokens - mean_n)

    @property
    def rate(self) -> float:
        """Tokens a second that have to be beaten: of the rounds so far, or without guessing."""
        plain = 1 / self._alone.value if self._alone.value else 0.0
        return max(self._tokens / self._seconds if self._seconds else 0.0, plain)
