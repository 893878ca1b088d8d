"""Which session an answer computes in, and what of its text that session finds computed already."""

from collections.abc import Sequence

from .engine.prefixes import Prefixes
from .engine.session import Session
from .generation.turns import Turn, Turns, turn_lost


class Conversations:
    """A model's sessions, one for each answer that may be computed at once, and what is kept of earlier ones.

    current: the session that was used last. What changes sessions is called by the model's thread.
    """

    def __init__(self, sessions: Sequence[Session], prefixes: Prefixes, turns: Turns) -> None:
        self._sessions, self._prefixes, self._turns = sessions, prefixes, turns
        self.current = sessions[0]

    def turn(self, tokens: Sequence[int]) -> Turn:
        """A turn for a text that begins like this. Of free places it likes that of a conversation which it goes on
        with and a policy has changed, and so cannot be found from elsewhere; least that of another such one."""
        def liked(slot: int) -> tuple[bool, bool]:
            session = self._sessions[slot]
            goes_on = session.shortest > 0 and session.common_prefix(tokens) >= session.shortest
            return goes_on, not session.shortest

        return Turn(lambda free: max(free, key=liked))

    def check(self, turn: Turn) -> None:
        """Raises ModelError where another answer has taken this turn."""
        if not self._turns.holds(turn):
            raise turn_lost()

    def session_of(self, turn: Turn) -> Session:
        """The session of an answer. Raises as `check`."""
        self.check(turn)
        return self._sessions[turn.slot]

    def recall(self, session: Session, tokens: Sequence[int]) -> int:
        """Have a session begin as these tokens do, as far as that is known. Returns how many of them it has."""
        self.current = session
        session.read(())
        held = session.common_prefix(tokens)
        if not session.shortest or held < session.shortest:
            self._prefixes.remember(session)
            for slot, other in enumerate(self._sessions):
                if other is not session and not other.shortest:
                    (self._prefixes.remember if self._turns.is_free(slot) else self._prefixes.share)(other)
            self._prefixes.recall(session, tokens)
            session.settle()
        else:  # what a policy has changed belongs to this conversation alone
            session.truncate(held)
        return session.length

    def leave(self) -> Session:
        """The current session, empty: what it has computed is kept as that of an earlier one."""
        self._prefixes.remember(self.current)
        return self.current
