"""Where a long text may be split so that the parts give the same token ids as the whole text.

Written by hand because the `tokenizers` library encodes a text only as a whole, and takes 100 bytes and more for each
character while it does. Split into parts, a text takes no more than one part.

Pre-tokenizers split text into words by regular expressions, of which the known ones are listed here. None of them makes
a word that goes on past a single space, or from letters to punctuation, or that depends on what stands before it.
Without a pre-tokenizer there are only merges (SentencePiece): then a space is no border where its neighbours stand
around one inside a token that merges make. Where a newline is an added token (Gemma), a text may be split behind it.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import tokenizers

from edgert.errors import ModelError

from .bpe import BpeTables

PART = 8192
"""Characters in a part, if a border comes in time."""
LONGEST_WORD = 32_768
"""Most characters without a border, if borders do not need a space: one word, or nothing but white space."""

_SPACE = r"(?<=[^\s▁]) (?=[^\s▁])"  # ▁ is SentencePiece's space
_NO_SPACE = (r"(?<=[A-Za-z0-9])(?=[\n!-&(-/:-@\[-`{-~])|(?<=[A-Za-z])(?=[0-9])"  # not "'", as in "it's"
             r"|(?<=[ぁ-ゖァ-ヺ一-龥가-힣])(?=[0-9、。，！？；：\n])")

_ONE_SPACE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
_NEWLINE = r"(?<=\n)(?=\S)"

_ANY_CASE = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ASCII_CASE = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_NOT_LOWER, _NOT_UPPER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
_CASED = (f"{_UPPER}*{_LOWER}+", f"{_UPPER}+{_LOWER}*", f"{_NOT_LOWER}*{_NOT_UPPER}+", f"{_NOT_LOWER}+{_NOT_UPPER}*")
_ALTERNATIVES = {
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _ANY_CASE, _ASCII_CASE,
    "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
    r" ?\p{L}+", r" ?\p{N}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\s?\p{L}+",
    *(rf"[^\r\n\p{{L}}\p{{N}}]?{letters}{ending}" for letters in _CASED
      for ending in ("", f"{_ANY_CASE}?", f"{_ASCII_CASE}?")),
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+", r"[!-/:-@\[-`{-~][A-Za-z]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""", "[一-龥\u3040-ゟ゠-ヿ]+",
    r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r"\p{N}{1}", r"[0-9][0-9][0-9]",
    r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r" ?[^\s\p{L}\p{N}\r\n]+",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", r" ?[\p{P}\p{S}]+[\r\n]*", r"[\p{P}\$\+<=>\^~\|]+", r"[\p{P}\$\+<=>\^~\|`]+",
    r"\s?\p{P}+", r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+", r"[\r\n]",
}
"""The alternatives (between the bars) of the regular expressions by which known models split text into words."""


class Borders:
    """Splits texts for one tokenizer."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, tables: BpeTables | None) -> None:
        """tables: the part of the vocabulary that `BpeTables.read` took out of `tokenizer`."""
        normalizers = _steps(tokenizer.normalizer)
        added = tokenizer.get_added_tokens_decoder().values()
        front = _steps(tokenizer.pre_tokenizer)
        self._skipped = int(any(step["type"] == "Prepend" for step in normalizers))
        pattern, merged = _pattern(front, normalizers, tokenizer, tables)
        if any(token.single_word for token in added):
            pattern = None  # these look at what is before them
        elif (merged and not any(step["type"] in ("Prepend", "Metaspace") for step in [*normalizers, *front])
              and _newlines_apart(added)):
            pattern = f"{pattern}|{_NEWLINE}"
        self._border = re.compile(pattern) if pattern is not None else None
        self._around = tables.around_spaces() if merged and tables is not None else frozenset()
        # A token that absorbs the space after it leaves none; where a space is left out, text must be on both sides.
        self._not_behind = tuple(token.content for token in added if token.rstrip or self._skipped)
        self._not_ahead = tuple(token.content for token in added if self._skipped)
        self._inside = [(name, border.start()) for name in {token.content.replace("▁", " ") for token in added}
                        for border in (self._border.finditer(name, 1) if self._border is not None else ())]
        self._needs_no_space = self._border is not None and _NO_SPACE in self._border.pattern

    def parts(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of each part. Where the tokenizer puts a space before every text, the space between two parts
        is left out.

        Raises ModelError for a word longer than LONGEST_WORD.
        """
        start = 0
        while start < len(text):
            end = self._next(text, start) if len(text) - start > PART else None
            length = (len(text) if end is None else end) - start
            if length > LONGEST_WORD + PART and self._needs_no_space:
                raise ModelError(f"The text has more than {LONGEST_WORD} characters in a row that hold no end of a "
                                 "word; that takes too much memory, shorten it.")
            yield start, start + length
            start += length + self._skipped

    def _next(self, text: str, start: int) -> int | None:
        """The last border in the second half of a part, otherwise the first after it."""
        if self._border is None:
            return None
        early = [border.start() for border in self._border.finditer(text, start + PART // 2, start + PART)]
        late = (border.start() for border in self._border.finditer(text, start + PART))
        return next((place for place in chain(reversed(early), late) if self._may_split(text, start, place)), None)

    def _may_split(self, text: str, start: int, place: int) -> bool:
        """Whether no added or merged token crosses the border, and none absorbs the space at it."""
        before = text[place - 1]
        if before in self._around or before + text[place + 1:place + 2] in self._around:
            return False
        return not (text.endswith(self._not_behind, start, place) or text.startswith(self._not_ahead, place + 1) or any(
            text.startswith(name, place - inside) for name, inside in self._inside if place - inside >= start))


def _steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, one after the other."""
    state: Any = json.loads(part.__getstate__()) if part is not None else {"type": "Sequence"}
    return state.get("normalizers", state.get("pretokenizers", [])) if state["type"] == "Sequence" else [state]


def _newlines_apart(added: Iterable[tokenizers.AddedToken]) -> bool:
    """Whether newlines are added tokens, whose runs are cut out of every text whatever stands around them."""
    return any(token.content == "\n" and not token.special for token in added) and not any(
        token.lstrip or token.rstrip or ("\n" in token.content and token.content.strip("\n")) for token in added)


def _pattern(front: list[dict[str, Any]], normalizers: list[dict[str, Any]], tokenizer: tokenizers.Tokenizer,
             tables: BpeTables | None) -> tuple[str | None, bool]:
    """A regular expression for the borders, None if no borders are known for this tokenizer; and whether nothing but
    merges makes its tokens."""
    space_replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"} in normalizers
    for step in normalizers:
        if step["type"] not in ("NFC", "Prepend") and step != _ONE_SPACE and not (
                step["type"] == "Replace" and space_replaced):
            return None, False
    words: set[str] = set()
    for step in front:
        kind = step["type"]
        if kind == "Split" and "Regex" in step["pattern"] and step["behavior"] == "Isolated" and not step["invert"]:
            alternatives = _alternatives(step["pattern"]["Regex"])
            if not alternatives <= _ALTERNATIVES:
                return None, False
            words |= alternatives
        elif kind == "ByteLevel":
            words |= {r"\s+", r" ?[^\s\p{L}\p{N}]+"} if step["use_regex"] else set()
        elif kind == "Metaspace":
            space_replaced = space_replaced or step["replacement"] == "▁"
            words |= {"▁"} if step["split"] else set()
        elif not (kind == "Digits" or (kind == "Split" and step["pattern"] == {"String": " "} and space_replaced)):
            return None, False
    if space_replaced:
        merged = not words and tables is not None and tokenizer.token_to_id("▁") is not None
        return (_SPACE if words == {"▁"} or merged else None), merged
    if r"\s+" not in words:
        return None, False
    punctuation = any(word.startswith((r" ?[^\s\p{L}", r" ?[\p{P}\p{S}]+")) for word in words)
    prefixed = any(step.get("add_prefix_space") for step in front)
    return (f"{_SPACE}|{_NO_SPACE}" if punctuation and not prefixed else _SPACE), False


def _alternatives(pattern: str) -> set[str]:
    """The alternatives of a regular expression: what is between its bars, except those inside brackets."""
    pattern = pattern.replace("\r", r"\r").replace("\n", r"\n")  # some have the characters themselves
    found = re.findall(r"(?:\\.|\[(?:\\.|[^\]])*\]|\((?:\\.|[^()])*\)|[^|\\\[(])+", pattern)
    return set(found) if "|".join(found) == pattern else {pattern}
