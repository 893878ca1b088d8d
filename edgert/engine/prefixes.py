"""What stays of conversations that are not being answered: blocks of the pool, found by the tokens in them.

Blocks are found along a chain: each is known by its tokens and by all that come before them, so that a system prompt,
earlier turns, or a document that two conversations share is computed once ("automatic prefix caching" of vLLM, Kwon et
al. 2023; the tree of SGLang, Zheng et al. 2024). The pool takes blocks from here when it has no others, those that were
needed longest ago first, and of a conversation its end before its beginning. Where it has a file for them they wait
there, and come back when they are needed: reading them takes far less time than computing them. What came back is also
still there, so that two conversations that change places are not written again.
"""

import contextlib
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Self

from edgert.errors import ModelError
from edgert.kernels.pages import PAGE

from .pool import Pool
from .session import Session, common_length

MORE_POSITIONS = PAGE
"""What a pool needs beyond the longest session: for a block that is held here and begun anew there."""
_WRITTEN = 16
"""Blocks that are copied to flash when one has to go: many at once take a fraction of the time."""


@dataclass(eq=False)
class _Node:
    """A block and the tokens in it, at most PAGE. depth: how many come before it. used: when it was needed last. copy:
    a block on flash with the same contents, if there is one and `block` is in memory."""

    block: int
    tokens: tuple[int, ...]
    before: "_Node | None"
    depth: int = 0
    used: int = 0
    copy: int | None = None
    after: list[Self] = field(default_factory=list)

    def need(self) -> tuple[int, int]:
        """The less, the sooner it goes."""
        return self.used, -self.depth


class Prefixes:
    """Holds blocks of one pool, and gives them to sessions that begin with the same tokens."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._clock = pool, count(1)
        self._root = _Node(-1, (), None)
        self._nodes: list[_Node] = []
        pool.reclaim = self._let_go
        if pool.windows is not None:
            pool.windows.leave = self._keep_windows
        pool.reclaim_out = lambda: self._drop_copy() or self._drop_until(lambda node: pool.is_out(node.block))

    def remember(self, session: Session) -> None:
        """Keep what a session has computed, and leave it empty. What its policy let go of is not to be found again."""
        self._keep(session.release())

    def share(self, session: Session) -> None:
        """Keep what a session has computed, as far as it fills blocks, while it goes on with them."""
        self._keep(session.share())

    def _keep(self, blocks: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """Keep blocks that are held for that, with the tokens in them, in order."""
        node, now = self._root, next(self._clock)
        for block, tokens in blocks:
            known = next((n for n in node.after if n.tokens[:len(tokens)] == tokens
                          and (n.tokens == tokens or self._has_windows(n) or not self._pool.has_windows(block))), None)
            if known is not None:
                if self._pool.is_out(known.block) and not self._pool.is_out(block) and known.tokens == tokens:
                    if not self._pool.has_windows(block):
                        self._pool.hand_windows(known.block, block)
                    known.block, known.copy = block, known.block
                else:
                    if known.tokens == tokens:
                        self._pool.hand_windows(block, known.block)
                    self._pool.give_back(block)
                node = known
            else:
                made = _Node(block, tokens, node, node.depth + 1)
                node.after.append(made)
                self._nodes.append(made)
                node = made
            node.used = now

    def recall(self, session: Session, tokens: Sequence[int]) -> None:
        """Give an empty session the longest beginning of `tokens` that is held, and that it can go on after: pages of
        layers with a window are there of its end."""
        path, now = self._path(tokens), next(self._clock)
        for node, _ in path:
            node.used = now
        parted = _length(path)
        path = self._reachable(path, session)
        if session.blocks.stream is None:
            path = self._brought_in(path)
        path = self._windows_in(path, session)
        for node, same in path:
            session.append_block(node.block, node.tokens[:same])
            if same == len(node.tokens) < PAGE:
                self._forget(node)  # the session writes on in it
            else:
                self._pool.share(node.block)
        session.parted = parted
        session.need_windows()

    def _has_windows(self, node: _Node) -> bool:
        """Whether a block's pages of layers with a window are there, in memory or on flash."""
        return self._pool.has_windows(node.block) or (node.copy is not None and self._pool.has_windows(node.copy))

    def _windows_in(self, path: list[tuple[_Node, int]], session: Session) -> list[tuple[_Node, int]]:
        """Have in memory what a session needs of layers with a window to go on after a path; as much of the path as
        could be read."""
        while windows := self._pool.windows:
            path = self._reachable(path, session)
            needed = [(node, node.block if node.copy is None else node.copy)
                      for node, _ in path[session.blocks.first_needed(_length(path)):]]
            # The room that they need is not to be made by forgetting them, nor where they are read from.
            held = [*(node.block for node, _ in path), *(source for _, source in needed)]
            for block in held:
                self._pool.share(block)
            for node, _ in needed:
                windows.touch(node.block)
            failed = None
            try:
                for node, source in needed:
                    failed = node
                    self._pool.bring_windows(node.block, source)
                return path
            except ModelError:
                assert failed is not None
                path = path[:next(number for number, (node, _) in enumerate(path) if node is failed)]
                self._forget_from(failed)
            finally:
                for block in held:
                    self._pool.give_back(block)
        return path

    def _reachable(self, path: list[tuple[_Node, int]], session: Session) -> list[tuple[_Node, int]]:
        """What of a path a session can go on after."""
        length = session.blocks.reachable([self._has_windows(node) for node, _ in path], _length(path))
        return [(node, min(same, length - number * PAGE)) for number, (node, same) in enumerate(path)
                if length > number * PAGE]

    def _path(self, tokens: Sequence[int]) -> list[tuple[_Node, int]]:
        """The longest beginning of `tokens` that is held: its blocks, and how many tokens of each."""
        node, found = self._root, 0
        path: list[tuple[_Node, int]] = []
        while True:
            rest = tokens[found:found + PAGE]
            best = max(node.after, key=lambda n: (common_length(n.tokens, rest), self._has_windows(n)), default=None)
            same = common_length(best.tokens, rest) if best is not None else 0
            if best is None or not same:
                return path
            path.append((best, same))
            found += same
            if same < PAGE:
                return path
            node = best

    def _brought_in(self, path: list[tuple[_Node, int]]) -> list[tuple[_Node, int]]:
        """Have a path's blocks in memory; as much of it as could be read, and the rest is computed again."""
        out = [node for node, _ in path if self._pool.is_out(node.block)]
        if not out:
            return path
        held = [node.block for node, _ in path]  # the room that they need is not to be made by forgetting them
        for block in held:
            self._pool.share(block)
        try:
            for node, block in zip(out, self._pool.copies_in([node.block for node in out]), strict=True):
                node.block, node.copy = block, node.block
        except ModelError:
            path = path[:next(number for number, (node, _) in enumerate(path) if node is out[0])]
            self._forget_from(out[0])
        finally:
            for block in held:
                self._pool.give_back(block)
        return path

    def _let_go(self) -> bool:
        """Give the pool the block that was needed longest ago, if there is any that only this holds."""
        here = [n for n in self._nodes if not self._pool.is_out(n.block) and not self._pool.shared(n.block)]
        if here and self._pool.swap is not None:
            oldest = min(here, key=_Node.need)
            if oldest.copy is None:
                some = heapq.nsmallest(_WRITTEN, (n for n in here if n.copy is None), _Node.need)
                self._copy_out(sorted(some, key=lambda node: node.depth))  # as they will be read
            if oldest.copy is not None:
                self._pool.give_back(oldest.block)
                oldest.block, oldest.copy = oldest.copy, None
                return True
        return self._drop_until(lambda node: not self._pool.is_out(node.block))

    def _copy_out(self, nodes: list[_Node]) -> None:
        """Have copies of blocks on flash, if that is possible, so that their places in memory are free to be taken."""
        held = [node.block for node in nodes]  # they stay while room is made on flash
        for block in held:
            self._pool.share(block)
        with contextlib.suppress(ModelError):
            for node, copy in zip(nodes, self._pool.copies_out(held), strict=True):
                node.copy = copy
        for block in held:
            self._pool.give_back(block)

    def _keep_windows(self, block: int) -> None:
        """Have on flash what is there of layers with a window of a block that is held here, and of others that may be
        the next."""
        windows = self._pool.windows
        node = next((n for n in self._nodes if n.block == block and not self._pool.is_out(block)), None)
        if windows is None or self._pool.swap is None or node is None or (
                node.copy is not None and self._pool.has_windows(node.copy)):
            return
        self._forget_copy(node)
        others = [n for n in self._nodes if n.copy is None and windows.likely(n.block)
                  and not self._pool.is_out(n.block) and n is not node]
        some = [node, *heapq.nsmallest(_WRITTEN - 1, others, _Node.need)]
        self._copy_out(sorted(some, key=lambda node: node.depth))

    def _drop_copy(self) -> bool:
        """Forget a copy on flash of a block that is also in memory: of those, the one that is needed last."""
        there = [node for node in self._nodes if node.copy is not None]
        if not there:
            return False
        self._forget_copy(max(there, key=_Node.need))
        return True

    def _drop_until(self, enough: Callable[[_Node], bool]) -> bool:
        """Forget what was needed longest ago, block after block, up to one that is enough; whether there was one."""
        while ends := [n for n in self._nodes if not n.after and not self._pool.shared(n.block)]:
            oldest = min(ends, key=_Node.need)
            found = enough(oldest)
            self._drop(oldest)
            if found:
                return True
        return False

    def _forget_from(self, node: _Node) -> None:
        """Let go of a block and of all that follow it."""
        while node.after:
            self._forget_from(node.after[0])
        self._drop(node)

    def _drop(self, node: _Node) -> None:
        self._forget(node)
        self._pool.give_back(node.block)

    def _forget(self, node: _Node) -> None:
        assert node.before is not None
        node.before.after.remove(node)
        self._nodes.remove(node)
        self._forget_copy(node)

    def _forget_copy(self, node: _Node) -> None:
        if node.copy is not None:
            self._pool.give_back(node.copy)
            node.copy = None


def _length(path: Sequence[tuple[_Node, int]]) -> int:
    """How many tokens are on a path."""
    return sum(same for _, same in path)
