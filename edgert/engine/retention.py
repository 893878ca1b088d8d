"""What a full key-value cache lets go of, so that a conversation can go on: policies.

Where a policy lets go of positions, an answer depends on it and on the size of the cache, but on nothing else: it does
so whenever the cache is exactly full, whatever comes together.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from edgert.errors import ModelError
from edgert.kernels.pages import PAGE
from edgert.models.config import Config

from .session import Session

Observe = Callable[[], np.ndarray]
"""How much attention the last tokens, or those at the end of a prompt that is being read, pay to each position: float32
of shape (layers, key-value heads, positions)."""


class Policy(Protocol):
    """least: the smallest context, in tokens, for which it makes sense. observes: whether it looks at attention. flash:
    whether the cache may be larger than its part of memory. windows: whether of layers with a window the cache has what
    they look at alone (window_pages.py)."""

    least: int
    observes: bool
    flash: bool
    windows: bool

    def goes_at_once(self, context: int) -> int:
        """How many positions of a full cache for so many tokens it lets go of; 0 for none: the conversation ends."""
        ...

    def make_room(self, session: Session, observe: Observe) -> None:
        """Let go of so many positions of a full session."""
        ...


class Stop:
    """Nothing is let go of, and every answer is exact. A full context is an error."""

    least, observes, flash, windows = 1, False, False, True

    def goes_at_once(self, context: int) -> int:
        return 0

    def make_room(self, session: Session, observe: Observe) -> None:
        raise ModelError(f"the context is full: room for {session.context} tokens; start anew, raise --context, or let "
                         "--kv-policy decide what to forget")


class Flash(Stop):
    """Nothing is let go of, and every answer is exact. What has no room in memory is on flash, and is read for each
    pass, just ahead of the layer that needs it (page_stream.py)."""

    least, flash = 4 * PAGE, True


class Window:
    """The first page stays, as attention sinks, and the latest positions: the oldest page after the first goes (Xiao
    et al. 2023, "Efficient Streaming Language Models with Attention Sinks"; Han et al. 2023, "LM-Infinite")."""

    least, observes, flash, windows = 3 * PAGE, False, False, True

    def goes_at_once(self, context: int) -> int:
        return PAGE

    def make_room(self, session: Session, observe: Observe) -> None:
        session.drop_block(1)


class Mixed:
    """What would go is kept at 3 bits an element, all but the first page and the latest positions; when there is no
    room for more of that either, the oldest of it goes (Yang et al. 2024, "No Token Left Behind", MiKV; Kang et al.
    2024, "GEAR"). Keys are quantized by channel, values by position, as in KIVI (Liu et al. 2024)."""

    least, observes, flash, windows = 12 * PAGE, False, False, False

    def goes_at_once(self, context: int) -> int:
        return PAGE

    def make_room(self, session: Session, observe: Observe) -> None:
        if session.low == session.most_low:
            session.drop_block(0)
        session.lower_block(session.low + 1)  # the first exact block has the attention sinks


class Heavy:
    """Of each key-value head the positions stay that attention returns to, the first few, and the latest (Zhang et al.
    2023, "H2O"; Liu et al. 2023, "Scissorhands"). What counts is the attention of the last OBSERVED tokens, now or
    whenever something was let go of before. While a prompt is read, it is that of the tokens at its end, where the
    question is ("SnapKV", Li et al. 2024): they look at what has been read so far ("FINCH", Corallo and Papotti
    2024). A layer with a window keeps the latest positions."""

    least, observes, flash, windows = 8 * PAGE, True, False, False
    sinks, latest = 4, PAGE
    spread = 3
    """Positions next to one that attention returns to count as much: what belongs together stays together."""

    def goes_at_once(self, context: int) -> int:
        return max(context // (8 * PAGE), 1) * PAGE

    def make_room(self, session: Session, observe: Observe) -> None:
        masses = observe()
        if not session.coming:
            np.maximum(masses, session.importance(masses.shape), out=masses)
        counted = masses.copy()
        for shift in range(1, self.spread + 1):
            np.maximum(counted[..., shift:], masses[..., :-shift], out=counted[..., shift:])
            np.maximum(counted[..., :-shift], masses[..., shift:], out=counted[..., :-shift])
        counted[..., :self.sinks] = counted[..., session.held - self.latest:] = np.inf
        for layer, of in enumerate(counted):
            if session.config.window(layer) is not None:  # it sees the latest positions alone
                of[:] = np.arange(session.held)
        kept = session.held - self.goes_at_once(session.context)
        # Stable: of equal ones the latest stay, on every machine.
        places = np.argsort(counted, -1, kind="stable")[..., session.held - kept:]
        places.sort(-1)
        session.keep(places, np.take_along_axis(masses, places, -1))


OBSERVED = 32
"""Tokens whose attention is looked at."""
STOP, FLASH, MIXED = "stop", "flash", "mixed"
POLICIES: dict[str, Policy] = {STOP: Stop(), FLASH: Flash(), "window": Window(), "heavy": Heavy(), MIXED: Mixed()}
"""By the names that a user gives."""


def parse_policy(name: str, context: int, config: Config) -> Policy:
    """The policy of a name, for a model, and a cache of so many tokens. Raises ModelError."""
    policy = POLICIES.get(name)
    if policy is None:
        raise ModelError(f"the cache policy {name!r} is not known; known: {', '.join(POLICIES)}")
    if context < policy.least:
        raise ModelError(f"the cache policy {name} needs a context of at least {policy.least} tokens, not {context}")
    if not isinstance(policy, Stop) and not config.rope_frequencies().any():
        raise ModelError(f"the cache policy {name} needs rotary positions, and this model has learned ones, which end; "
                         f"use {STOP}")
    if policy.observes and config.sinks:  # kernels/masses.py would count more attention than is paid
        raise ModelError(f"the cache policy {name} goes by attention without sinks, and this model's has some; use "
                         f"{MIXED}, window or {FLASH}")
    return policy
