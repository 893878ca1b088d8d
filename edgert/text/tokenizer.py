"""Text to token ids and back."""

import codecs
import ctypes
import json
import re
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Self

import tokenizers
from tokenizers import pre_tokenizers

from edgert.errors import ModelError

from .bpe import BpeTables
from .text_borders import PART, Borders


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable characters and the bytes they stand for (Radford et al. 2019, `bytes_to_unicode`)."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()

WHITE_SPACE = "".join(character for character in map(chr, range(0x3001))
                      if character.isspace() and character not in "\x1c\x1d\x1e\x1f")
"""White space as Unicode and the library define it; Python counts four separators more."""

LONGEST_TEXT = 4_000_000
"""Characters in one text: more than any context holds, and below where the library's regular expressions fail."""


def check_unicode(text: str, what: str) -> None:
    """Raises ModelError if the text contains half of a surrogate pair, which UTF-8 cannot represent."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ModelError(f"{what}: character {error.start} is {text[error.start]!r}, half of a surrogate pair, which "
                         "is no valid Unicode; decode bytes with errors='replace'.") from None


class AnyTokenizer(ABC):
    """What answers, grammars and servers need of a tokenizer, whoever tokenizes.

    bos_token_id, eos_token_ids, add_bos_token: what begins a text, what ends one, and whether texts begin with the
    first by themselves. special_ids: tokens that plain text never becomes. strips_space: whether the space in front of
    a text, which such tokenizers put there themselves, is no part of it.
    """

    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    add_bos_token: bool
    special_ids: frozenset[int]
    strips_space: bool

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens; a model's embedding may have more rows, as padding."""

    @abstractmethod
    def encode(self, text: str, *, special: bool = True, given: bytes | None = None,
               add_bos: bool | None = None) -> list[int]:
        """The token ids of `text`.

        special: names of special tokens in the text, such as <|im_start|>, become those tokens; otherwise they are
        plain text, so that what a user types cannot imitate the structure of a chat. given: one byte per character, 1
        where the character must not be part of such a name. add_bos: put BOS first; None for what the model wants.

        Raises ModelError if the text is not valid Unicode, is longer than LONGEST_TEXT or contains an extremely long
        word, or if plain text becomes a special token all the same, as an unusual vocabulary might make happen.
        """

    def _begun(self, ids: list[int], add_bos: bool | None) -> list[int]:
        """The ids of a text, after BOS if that is asked for, or None and the model wants it. Raises ModelError."""
        if not (self.add_bos_token if add_bos is None else add_bos):
            return ids
        if self.bos_token_id is None:
            raise ModelError("The model has no BOS token to add; encode without it.")
        return [self.bos_token_id, *ids]

    @abstractmethod
    def encode_within(self, text: str) -> list[int]:
        """The token ids of a part of a text that does not begin it: no BOS, no space in front, no special tokens.

        Raises what `encode` raises for texts that cannot be tokenized."""

    @abstractmethod
    def id_to_token(self, index: int) -> str | None:
        """The token as the vocabulary spells it; None if there is none. Raises ModelError for a negative id."""

    @abstractmethod
    def token_bytes(self, index: int) -> bytes:
        """The bytes of text that a token stands for; empty for an id without a token, such as the embedding's padding.

        Raises ModelError for a negative id.
        """

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of token ids; invalid UTF-8 becomes U+FFFD. Raises ModelError for a negative id."""
        data = b"".join(self.token_bytes(index) for index in ids if not (skip_special and index in self.special_ids))
        text = data.decode("utf-8", "replace")
        return text[1:] if self.strips_space and text.startswith(" ") else text

    def ids_of(self, names: Collection[str]) -> dict[str, int]:
        """Those of these names that are special tokens, with their ids."""
        return {name: index for index in self.special_ids
                if (name := self.token_bytes(index).decode("utf-8", "replace")) in names}

    def stream_decoder(self, *, skip_special: bool = False, shown: Collection[int] = ()) -> "StreamDecoder":
        """shown: special tokens that are not skipped."""
        return StreamDecoder(self, self.special_ids.difference(shown) if skip_special else frozenset())


def check_text(text: str) -> None:
    """Raises ModelError for a text that no tokenizer takes: not valid Unicode, or longer than LONGEST_TEXT."""
    if len(text) > LONGEST_TEXT:
        raise ModelError(f"The text has {len(text)} characters, more than the {LONGEST_TEXT} that edgert takes at "
                         "once; shorten it.")
    check_unicode(text, "The text cannot be tokenized")


class Tokenizer(AnyTokenizer):
    """A model's tokenizer: byte-level BPE, or SentencePiece-style with byte fallback.

    It wraps the `tokenizers` library, for less memory and for text of others that must not become special tokens.
    Methods may be called from several threads.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, bos_token_id: int | None = None,
                 eos_token_ids: Sequence[int] = (), add_bos_token: bool = False,
                 tables: BpeTables | None = None) -> None:
        """tables: the part of the vocabulary that `BpeTables.read` took out of `tokenizer`.

        Raises ModelError if the tokenizer decodes in a way that is not supported.
        """
        self._tokenizer = tokenizer
        self._tables = tables
        self._lock = threading.Lock()
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(eos_token_ids)
        self.add_bos_token = add_bos_token
        if (resize := getattr(tokenizer.model, "_resize_cache", None)) is not None:
            resize(0)  # it would keep 10 000 words for ever, several MB; `finish` has a cache for each text
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        self._added = {index: token.content.encode() for index, token in added.items()}
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self._strip_left = {index for index, token in added.items() if token.lstrip}
        self._strip_right = {index for index, token in added.items() if token.rstrip}
        self._unknown = {index: self._added[index].decode()
                         for index in tokenizer.encode("\U0010fffe", add_special_tokens=False).ids
                         if index in self.special_ids}
        """What characters become that the vocabulary does not have: nothing, or the token called <unk> or the like."""
        front = tokenizer.pre_tokenizer
        words: Any = front if isinstance(front, pre_tokenizers.Sequence) else [front]
        self._prepends_once = [step for step in words if getattr(step, "prepend_scheme", None) == "first"]
        state = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
        steps = state.get("decoders", [state])
        kinds = {step.get("type") for step in steps}
        if "ByteLevel" in kinds:
            self._byte_level = True
        elif kinds & {"ByteFallback", "Metaspace"}:
            self._byte_level = False
        else:
            raise ModelError("The model's tokenizer is neither byte-level BPE nor SentencePiece-style, the two kinds "
                             "that edgert knows; use another model.")
        self.strips_space = not self._byte_level and any(
            step.get("start") == 1 if step.get("type") == "Strip" else
            step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never" for step in steps)

    @classmethod
    def from_json(cls, data: str | bytes, bos_token_id: int | None = None, eos_token_ids: Sequence[int] = (),
                  add_bos_token: bool = False) -> Self:
        """Load a tokenizer from the `tokenizers` library's JSON; bytes take less memory. Raises ModelError."""
        with _library("The model's tokenizer cannot be read"):
            data = data.encode() if isinstance(data, str) else bytes(data)
            read = BpeTables.read(data)
            front, tables = read if read is not None else (data, None)
            tokenizer = tokenizers.Tokenizer.from_buffer(front)
            del data, read, front
            return_freed_memory()
            return cls(tokenizer, bos_token_id, eos_token_ids, add_bos_token, tables)

    def encode(self, text: str, *, special: bool = True, given: bytes | None = None,
               add_bos: bool | None = None) -> list[int]:
        check_text(text)
        # `encode_special_tokens` is a setting of the shared tokenizer: another thread must not switch it in between.
        with self._lock, _library("The text cannot be tokenized"):
            ids, names = self._encode(text, special)
            if given is not None and any(1 in given[start:end] for start, end in names):
                ids, names = self._encode_around(text, given)
        named = sum(text[start:end].strip() not in self._unknown.values() for start, end in names)
        if (given is not None or not special) and named != sum(
                index in self.special_ids and index not in self._unknown for index in ids):
            raise ModelError("The text turns into a special token of the model even when read as plain text; "
                             "take special tokens' names out of it.")
        if len(text) > PART:  # the library takes 100 bytes per character, for a moment
            return_freed_memory()
        return self._begun(ids, add_bos)

    def encode_within(self, text: str) -> list[int]:
        check_unicode(text, "The text cannot be tokenized")
        with self._lock, _library("The text cannot be tokenized"):
            return self._encode_plain(text, first=False)

    def _encode(self, text: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids, and where the names of special tokens are in the text (none without `special`)."""
        self._tokenizer.encode_special_tokens = not special
        ids: list[int] = []
        names: list[tuple[int, int]] = []
        for start, end in self._borders.parts(text) if len(text) > PART else [(0, len(text))]:
            encoding = self._tokenizer.encode(text[start:end], add_special_tokens=False)
            new = encoding.ids
            if special and not self.special_ids.isdisjoint(new):
                names += [(start + first, start + last)
                          for index, (first, last) in zip(new, encoding.offsets, strict=True)
                          if index in self.special_ids and (
                              index not in self._unknown or text[start + first:start + last].strip()
                              == self._unknown[index])]
            ids += new if self._tables is None else self._tables.finish(new, encoding.word_ids)
        return ids, names

    def _encode_around(self, text: str, given: bytes) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode with special tokens only where no character of the name is given, and all text between as plain text.

        As in the library, the text is split at the names before anything else: the leftmost name first, and the longest
        of those that start there.
        """
        special = {self._added[index].decode(): index for index in self.special_ids}
        names = sorted((name for name in special if name in text), key=len, reverse=True)
        name = re.compile("|".join(map(re.escape, names)) or "(?!)")
        ids: list[int] = []
        places = []
        end = 0
        for own in re.finditer(rb"\0+", given):
            for match in name.finditer(text, own.start(), own.end()):
                index = special[match[0]]
                before = text[end:match.start()]
                if index in self._strip_left:
                    before = before.rstrip(WHITE_SPACE)
                ids += [*self._encode_plain(before, first=end == 0), index]
                places.append(match.span())
                end = match.end()
                if index in self._strip_right:
                    end = len(text) - len(text[end:].lstrip(WHITE_SPACE))
        return ids + self._encode_plain(text[end:], first=end == 0), places

    def _encode_plain(self, text: str, *, first: bool) -> list[int]:
        """The ids of a part of a text. first: it is the beginning of the text."""
        for step in self._prepends_once:
            step.prepend_scheme = "first" if first else "never"
        try:
            return self._encode(text, special=False)[0] if text else []
        finally:
            for step in self._prepends_once:
                step.prepend_scheme = "first"

    @cached_property
    def _borders(self) -> Borders:
        return Borders(self._tokenizer, self._tables)

    @cached_property
    def vocab_size(self) -> int:
        if self._tables is not None:
            return self._tables.vocab_size
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def id_to_token(self, index: int) -> str | None:
        if not 0 <= index < 1 << 32:
            raise ModelError(f"{index} is no token id; ids are whole numbers from 0.")
        if self._tables is None:
            return self._tokenizer.id_to_token(index)
        if (added := self._added.get(index)) is not None:
            return added.decode()
        return self._tables.token(index).decode() or None

    def token_bytes(self, index: int) -> bytes:
        if (added := self._added.get(index)) is not None:
            return added
        token = self.id_to_token(index)
        if token is None:
            return b""
        if self._byte_level:
            try:
                return bytes(map(BYTE_OF.__getitem__, token))
            except KeyError:  # a token outside the byte alphabet stands for itself
                return token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                return token.encode()
        return token.replace("▁", " ").encode()


class StreamDecoder:
    """Decodes tokens one by one into pieces of text that together are what `decode` gives.

    A piece never ends within a character: up to three bytes are held back until the character is complete.
    """

    def __init__(self, tokenizer: AnyTokenizer, skipped: frozenset[int] = frozenset()) -> None:
        """skipped: tokens that add no text."""
        self._tokenizer, self._skipped = tokenizer, skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_next = tokenizer.strips_space

    def push(self, index: int) -> str:
        """Add a token; returns the text that is complete now, possibly none. Raises ModelError for a negative id."""
        if index in self._skipped:
            return ""
        return self._piece(self._decoder.decode(self._tokenizer.token_bytes(index)))

    def flush(self) -> str:
        """Returns U+FFFD for bytes that were held back and never completed. The decoder can then be used again."""
        text = self._piece(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        self._strip_next = self._tokenizer.strips_space
        return text

    def _piece(self, text: str) -> str:
        if text and self._strip_next:
            self._strip_next = False
            return text.removeprefix(" ")
        return text


def return_freed_memory() -> None:
    """Return freed memory to the system: parsing a vocabulary frees as much as it keeps, and glibc holds on to it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


@contextmanager
def _library(message: str) -> Iterator[None]:
    """Turns what the library raises into a ModelError: plain Exceptions, and panics, which are not Exceptions."""
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{message}: {' '.join(str(error).split()) or type(error).__name__}.") from error
