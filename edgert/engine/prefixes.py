"""What stays of conversations that are not being answered: blocks of the pool, found by the tokens in them.

Blocks are found along a chain: each is known by its tokens and by all that come before them, so that a system prompt,
earlier turns, or a document that two conversations share is computed once ("automatic prefix caching" of vLLM, Kwon et
al. 2023; the tree of SGLang, Zheng et al. 2024). The pool takes blocks from here when it has no others, those that were
needed longest ago first, and of a conversation its end before its beginning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Self

from edgert.kernels.pages import PAGE

from .pool import Pool
from .session import Session, common_length

MORE_POSITIONS = PAGE
"""What a pool needs beyond the longest session: for a block that is held here and begun anew there."""


@dataclass(eq=False)
class _Node:
    """A block and the tokens in it, at most PAGE. used: when it was needed last."""

    block: int
    tokens: tuple[int, ...]
    before: "_Node | None"
    used: int = 0
    after: list[Self] = field(default_factory=list)


class Prefixes:
    """Holds blocks of one pool, and gives them to sessions that begin with the same tokens."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._clock = pool, count(1)
        self._root = _Node(-1, (), None)
        self._nodes: list[_Node] = []
        pool.reclaim = self._let_go

    def remember(self, session: Session) -> None:
        """Keep what a session has computed, and leave it empty. What its policy let go of is not to be found again."""
        node, now = self._root, next(self._clock)
        for block, tokens in session.release():
            known = next((n for n in node.after if n.tokens[:len(tokens)] == tokens), None)
            if known is not None:
                self._pool.give_back(block)
                node = known
            else:
                made = _Node(block, tokens, node)
                node.after.append(made)
                self._nodes.append(made)
                node = made
            node.used = now

    def recall(self, session: Session, tokens: Sequence[int]) -> None:
        """Give an empty session the longest beginning of `tokens` that is held."""
        node, found, now = self._root, 0, next(self._clock)
        while True:
            rest = tokens[found:found + PAGE]
            best = max(node.after, key=lambda n: common_length(n.tokens, rest), default=None)
            same = common_length(best.tokens, rest) if best is not None else 0
            if best is None or not same:
                return
            best.used = now
            session.append_block(best.block, rest[:same])
            if same == len(best.tokens) < PAGE:
                self._forget(best)  # the session writes on in it
            else:
                self._pool.share(best.block)
            found += same
            if same < PAGE:
                return
            node = best

    def _let_go(self) -> bool:
        """Give the pool the block that was needed longest ago, if there is any that only this holds."""
        ends = [n for n in self._nodes if not n.after and not self._pool.shared(n.block)]
        if not ends:
            return False
        oldest = min(ends, key=lambda n: n.used)
        self._forget(oldest)
        self._pool.give_back(oldest.block)
        return True

    def _forget(self, node: _Node) -> None:
        assert node.before is not None
        node.before.after.remove(node)
        self._nodes.remove(node)
