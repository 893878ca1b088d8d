"""Byte-pair encoding (Sennrich et al. 2016) with a vocabulary and merges in compact tables.

Written by hand because the `tokenizers` library keeps them in hash maps that take ten times the memory (300 bytes a
token against 30, 37 MB more for Qwen2.5: docs/notes/process.md), which would not fit a small budget. The library still
does everything else; the ids are the same.
"""

import json
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import groupby
from typing import Any, Self

import numpy as np

MERGES_IN_FRONT = 4096
"""How many of the first merges the library keeps: most merging is done by these, and they take 1 MB."""

_SPACE = rb"[ \t\r\n]*+"
_TEXT = rb'"((?:[^"\\\x00-\x1f]|\\.)*+)"'
_VOCAB = re.compile(_SPACE.join([rb'(?<!\\)"vocab"', b":", b"{"]))
_MERGES = re.compile(_SPACE.join([rb'(?<!\\)"merges"', b":", rb"\[", rb"(\[)?"]))
_ENTRY = re.compile(_SPACE.join([b"", _TEXT, b":", rb"(0|[1-9][0-9]{0,8})", b"([,}])"]))
_MERGE = re.compile(_SPACE.join([b"", rb"\[", _TEXT, b",", _TEXT, rb"\]", rb"([,\]])"]))
_HALF = rb'((?:[^"\\\x00-\x20]|\\(?!u0020).)++)'
_OLD_MERGE = re.compile(_SPACE.join([b"", rb'"(?!#version)' + _HALF + b" " + _HALF + b'"', rb"([,\]])"]))


class BpeTables:
    """Vocabulary and merges of byte-pair encoding.

    The library gets a small vocabulary: characters, added tokens and what the first merges make. With it the library
    normalizes, splits into words and starts merging; `finish` does the remaining merges, in the library's order.
    """

    def __init__(self, ids: dict[bytes, int], merges: np.ndarray, *, whole_words: bool, vocab_size: int) -> None:
        """ids: token to id. merges: ids of the left part, the right part and the result, uint64 of shape (n, 3), in
        order of rank. whole_words: a word that is in the vocabulary becomes that token, whatever the merges say.

        Raises ValueError if two tokens have one id, or one pair has two merges.
        """
        names = [b""] * (max(ids.values(), default=-1) + 1)
        for name, index in ids.items():
            names[index] = name
        if len(names) - names.count(b"") != len(ids):
            raise ValueError("an id of two tokens, or a token without text")
        self.vocab_size = vocab_size
        self._text = b"".join(names)
        self._ends = array("I", np.cumsum([0, *map(len, names)], dtype=np.uint32).tobytes())
        self._sorted = array("I", sorted(range(len(names)), key=names.__getitem__)) if whole_words else None
        keys = merges[:, 0] << np.uint64(32) | merges[:, 1]
        order = np.argsort(keys)
        keys = keys[order]
        if np.any(keys[1:] == keys[:-1]):
            raise ValueError("two merges of one pair")
        self._keys = array("Q", keys.tobytes())
        self._ranks = array("I", order.astype(np.uint32).tobytes())
        self._merged = array("I", merges[order, 2].astype(np.uint32).tobytes())

    @classmethod
    def read(cls, data: bytes) -> "tuple[bytes, Self] | None":
        """Split a tokenizer's JSON into the JSON with a small vocabulary for the library, and tables with the rest.

        Returns None for a tokenizer that only the library can handle, and for one that the library will refuse.
        """
        try:
            return cls._read(data)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            return None

    @classmethod
    def _read(cls, data: bytes) -> "tuple[bytes, Self] | None":
        vocab, pairs = _VOCAB.search(data), _MERGES.search(data)
        if vocab is None or pairs is None:
            return None
        ids: dict[bytes, int] = {}
        for name, index in (items := _Items(_ENTRY, data, vocab.end())):
            ids[name if b"\\" not in name else _unescaped(name)] = int(index)
        vocab_end = items.end
        if max(ids.values()) > 2 * len(ids) + 1000:
            return None  # the tables have a row for every id
        merges, pairs_start = array("Q"), pairs.end() - len(pairs[1] or b"")
        for left, right in (items := _Items(_MERGE if pairs[1] else _OLD_MERGE, data, pairs_start)):
            left = left if b"\\" not in left else _unescaped(left)
            right = right if b"\\" not in right else _unescaped(right)
            merges.extend((ids[left], ids[right], ids[left + right]))
        (start, stop), (start2, stop2) = sorted([(vocab.end(), vocab_end), (pairs_start, items.end)])
        rest = json.loads(data[:start] + data[stop:start2] + data[stop2:])
        model = rest["model"]
        if (model["type"] != "BPE" or model["vocab"] != {} or model["merges"] != [] or model.get("dropout")
                or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")):
            return None
        whole_words = bool(model.get("ignore_merges"))
        if whole_words and not _ends_in_bytes(rest.get("pre_tokenizer")):
            return None  # characters without a token vanish, and with them what the word was
        unknown = (model.get("unk_token") or "").encode()
        added = _added_ids(rest.get("added_tokens") or [], ids)
        new = added.keys() - ids.keys()
        if any(len(name.decode()) == 1 or _BYTE.fullmatch(name) or name == unknown for name in new):
            return None  # in the vocabulary the library would use it for text
        table = np.frombuffer(merges, dtype=np.uint64).reshape(-1, 3)
        tables = cls(ids, table, whole_words=whole_words, vocab_size=len(ids) + len(new))
        first = min(MERGES_IN_FRONT, len(table))
        if np.isin(table[first:, 2], table[:first, :2]).any():
            first = 0  # a late merge makes way for an early one: all must be done together
        kept = {tables.token(index) for index in set(table[:first].ravel().tolist())}
        kept |= {name for name in ids if (len(name) <= 4 and len(name.decode()) == 1) or _BYTE.fullmatch(name)}
        model["vocab"] = {name.decode(): ids[name] for name in kept | {unknown} & ids.keys()}
        model["vocab"] |= {name.decode(): index for name, index in added.items()}
        model["merges"] = [[tables.token(left).decode(), tables.token(right).decode()]
                           for left, right, _ in table[:first].tolist()]
        model["ignore_merges"] = False
        return json.dumps(rest).encode(), tables

    def token(self, index: int) -> bytes:
        """The token as the vocabulary spells it, in UTF-8; empty if there is no such token."""
        if index + 1 >= len(self._ends):
            return b""
        return self._text[self._ends[index]:self._ends[index + 1]]

    def around_spaces(self) -> frozenset[str]:
        """What stands around SentencePiece's spaces in tokens that merges make, where a space is behind another
        character: the characters before and after it, or the one before it where the token ends."""
        return frozenset(found[1].decode() + found[2].decode() for index in set(self._merged)
                         for found in _SPACE_INSIDE.finditer(self.token(index)))

    def finish(self, ids: Sequence[int], words: Sequence[int | None]) -> list[int]:
        """Do the merges that the library did not do. words: for each id, the number of the word that it is in."""
        result: list[int] = []
        known: dict[tuple[int, ...], list[int]] = {}
        for _, group in groupby(zip(words, ids, strict=True), key=lambda pair: pair[0]):
            word = tuple(index for _, index in group)
            merged = known.get(word)
            if merged is None:
                if len(known) >= 4096:
                    known.clear()
                merged = known[word] = self._merge(list(word))
            result += merged
        return result

    def _merge(self, ids: list[int]) -> list[int]:
        """Merge one word as the library's `merge_all` does (models/bpe/word.rs): lowest rank first, then leftmost."""
        count = len(ids)
        if count == 1:
            return ids
        if self._sorted is not None:
            word = b"".join(map(self.token, ids))
            place = bisect_left(self._sorted, word, key=self.token)
            if place < len(self._sorted) and self.token(self._sorted[place]) == word:
                return [self._sorted[place]]
        keys, ranks, merged, pairs = self._keys, self._ranks, self._merged, len(self._keys)

        def find(position: int, right: int) -> int:
            """The pair's place in the tables, or -1."""
            key = ids[position] << 32 | ids[right]
            place = bisect_left(keys, key)
            return place if place < pairs and keys[place] == key else -1

        after, before = list(range(1, count + 1)), list(range(-1, count - 1))
        queue = [(ranks[place], position, merged[place]) for position in range(count - 1)
                 if (place := find(position, position + 1)) >= 0]
        heapify(queue)
        while queue:
            _, position, new = heappop(queue)
            right = after[position]
            if ids[position] < 0 or right == count:
                continue
            place = find(position, right)
            if place < 0 or merged[place] != new:
                continue  # one of the two has become another token since
            ids[position], ids[right] = new, -1
            following, previous = after[right], before[position]
            after[position] = following
            if following < count:
                before[following] = position
                if (place := find(position, following)) >= 0:
                    heappush(queue, (ranks[place], position, merged[place]))
            if previous >= 0 and (place := find(previous, position)) >= 0:
                heappush(queue, (ranks[place], previous, merged[place]))
        return [index for index in ids if index >= 0]


_CHARACTER = rb"(?:[\x00-\x7F]|[\xC2-\xF4][\x80-\xBF]+)"
_SPACE_INSIDE = re.compile(b"(%s)(?<!\xE2\x96\x81)\xE2\x96\x81(?=(%s?))" % (_CHARACTER, _CHARACTER))
_BYTE = re.compile(rb"<0x[0-9A-F]{2}>")


class _Items:
    """The items of a JSON array or object, found with `pattern`. Iterating yields the first two groups of each match;
    the third group is the comma or bracket after the item. At the end, `end` is the position of the closing bracket.

    Raises ValueError for an item that does not match.
    """

    def __init__(self, pattern: re.Pattern[bytes], data: bytes, start: int) -> None:
        self._pattern, self._data, self.end = pattern, data, start

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        end = self.end
        for item in self._pattern.finditer(self._data, end):
            if item.start() != end:
                break
            first, second, mark = item.groups()
            yield first, second
            end = item.end()
            if mark != b",":
                self.end = end - 1
                return
        raise ValueError("an item that is not as expected")


def _unescaped(text: bytes) -> bytes:
    name: str = json.loads(b'"' + text + b'"')
    return name.encode()


def _ends_in_bytes(pre_tokenizer: Any) -> bool:
    """Whether the pre-tokenizer's last step turns all words into the byte alphabet."""
    if pre_tokenizer["type"] == "Sequence":
        return _ends_in_bytes(pre_tokenizer["pretokenizers"][-1])
    return pre_tokenizer["type"] == "ByteLevel"


def _added_ids(added: list[dict[str, Any]], ids: dict[bytes, int]) -> dict[bytes, int]:
    """Ids of the added tokens. Raises ValueError if the library would give them other ids than the JSON says."""
    result: dict[bytes, int] = {}
    last = len(ids) - 1
    for token in added:
        name = token["content"].encode()
        expected = ids.get(name, last + 1)
        if not name or name in result or token["id"] != expected:
            raise ValueError("an added token of another id")
        result[name] = expected
        last = max(last, expected)
    return result
