"""Prompt lookup: what followed the last tokens where they stood before is a guess of what follows now."""

from array import array
from collections.abc import Sequence
from itertools import cycle, islice
from typing import NamedTuple


class Proposal(NamedTuple):
    """A guess of the next tokens. match: how many of the last tokens stood before, just as they are."""

    tokens: list[int]
    match: int


class Lookup:
    """Follows a sequence of tokens, and proposes what followed its last tokens where they stood before.

    This is prompt lookup (Saxena 2023, "Prompt Lookup Decoding") with the longest match, as in SAM-Decoding (Hu et al.
    2024). In place of their suffix automaton, every pair of tokens is linked to the one before that is equal to it, as
    in the hash chains of zlib: a token more takes constant time, and at most about 130 bytes (170 for a moment, when
    the table of pairs grows). A proposal goes through the earlier occurrences of the last pair, unless the tokens that
    were added continue the match of the last proposal.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._latest: dict[int, int] = {}
        """Of each pair, where its latest occurrence ends: the index after it."""
        self._earlier = array("i")
        """For each token, where the occurrence before of the pair that it completes ends; 0 if there is none."""
        self._match, self._end = 0, 0
        """The last tokens that stood before, if known: how many, and where they ended; otherwise 0."""

    def follow(self, tokens: Sequence[int]) -> None:
        """Make this the sequence: the first tokens that it shares with the former one stay, others go.

        tokens: token ids, from 0 and below 2 to the power of 32. Comparing takes some nanoseconds per shared token.
        """
        kept = _shared(self._tokens, tokens)
        while len(self._tokens) > kept:
            self._drop()
        for token in tokens[kept:]:
            self._add(token)

    def propose(self, most: int) -> Proposal:
        """Propose up to `most` tokens, fewer only where the last two tokens never stood before: then none, match 0.

        Of several earlier occurrences of the longest match, the latest counts. One that has fewer tokens after it
        overlaps what it proposes, and is repeated: "abcabc" is taken to go on.
        """
        if not self._match:
            self._match, self._end = self._longest()
        if not self._match:
            return Proposal([], 0)
        return Proposal(list(islice(cycle(self._tokens[self._end:self._end + most]), most)), self._match)

    def _add(self, token: int) -> None:
        if self._match:
            continues = self._tokens[self._end] == token
            self._match, self._end = (self._match + 1, self._end + 1) if continues else (0, 0)
        self._tokens.append(token)
        earlier = 0
        if len(self._tokens) > 1:
            pair = self._last_pair()
            earlier = self._latest.get(pair, 0)
            self._latest[pair] = len(self._tokens)
        self._earlier.append(earlier)

    def _drop(self) -> None:
        earlier = self._earlier.pop()
        if earlier:
            self._latest[self._last_pair()] = earlier
        elif len(self._tokens) > 1:
            del self._latest[self._last_pair()]
        self._tokens.pop()
        self._match, self._end = 0, 0

    def _last_pair(self) -> int:
        return self._tokens[-2] << 32 | self._tokens[-1]

    def _longest(self) -> tuple[int, int]:
        """The length of the longest match, and where its latest earlier occurrence ends."""
        tokens, match, end = self._tokens, 0, 0
        longest: list[int] = []
        candidate = self._earlier[-1] if tokens else 0
        while candidate > match:  # one that ends sooner cannot be longer
            if tokens[candidate - 1 - match] == tokens[-1 - match] and tokens[candidate - match:candidate] == longest:
                match, end = _common_suffix(tokens, candidate, match), candidate
                longest = tokens[-match:]
            candidate = self._earlier[candidate - 1]
        return match, end


def _shared(first: list[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share from their beginning."""
    if list(second[:len(first)]) == first:
        return len(first)
    pairs = zip(first, second, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _common_suffix(tokens: list[int], end: int, known: int) -> int:
    """How many tokens before an index equal the last ones. known: of how many that is known already."""
    while known < end and tokens[end - 1 - known] == tokens[-1 - known]:
        known += 1
    return known
