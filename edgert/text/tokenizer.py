"""Text to token ids and back."""

import codecs
import ctypes
import json
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
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
"""As Unicode and the library have it; Python counts four separators more."""

LONGEST_TEXT = 4_000_000
"""Characters in one text: many times any context, and below where the library's regular expressions give up."""


def check_unicode(text: str, what: str) -> None:
    """Raises ModelError for half of a surrogate pair, which no text in UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ModelError(f"{what}: character {error.start} is {text[error.start]!r}, half of a surrogate pair, which "
                         "is no valid Unicode; decode bytes with errors='replace'.") from None


class Tokenizer:
    """A tokenizer of the `tokenizers` library: byte-level BPE, or SentencePiece-style with byte fallback.

    Methods may be called from several threads.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, bos_token_id: int | None = None,
                 eos_token_ids: Sequence[int] = (), add_bos_token: bool = False,
                 tables: BpeTables | None = None) -> None:
        """tables: what was taken out of `tokenizer` by `BpeTables.read`.

        Raises ModelError where the tokenizer decodes in a way that is not known here.
        """
        self._tokenizer = tokenizer
        self._tables = tables
        self._lock = threading.Lock()
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(eos_token_ids)
        self.add_bos_token = add_bos_token
        if (resize := getattr(tokenizer.model, "_resize_cache", None)) is not None:
            resize(0)  # it keeps 10 000 words for ever, several MB, and `finish` has what one text repeats
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        self._added = {index: token.content.encode() for index, token in added.items()}
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self._strip_left = {index for index, token in added.items() if token.lstrip}
        self._strip_right = {index for index, token in added.items() if token.rstrip}
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
        self._strips_space = not self._byte_level and any(
            step.get("start") == 1 if step.get("type") == "Strip" else
            step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never" for step in steps)

    @classmethod
    def from_json(cls, data: str | bytes, bos_token_id: int | None = None, eos_token_ids: Sequence[int] = (),
                  add_bos_token: bool = False) -> Self:
        """From the `tokenizers` library's JSON, which takes least memory as bytes. Raises ModelError."""
        with _library("The model's tokenizer cannot be read"):
            data = data.encode() if isinstance(data, str) else bytes(data)
            read = BpeTables.read(data)
            front, tables = read if read is not None else (data, None)
            tokenizer = tokenizers.Tokenizer.from_buffer(front)
        del data, read, front
        _return_freed_memory()
        return cls(tokenizer, bos_token_id, eos_token_ids, add_bos_token, tables)

    def encode(self, text: str, *, special: bool = True, given: bytes | None = None,
               add_bos: bool | None = None) -> list[int]:
        """The ids of `text`, with BOS before them if `add_bos`, or where it is None if the model wants it.

        With `special` the names of special tokens in the text, such as <|im_start|>, become those tokens; without,
        they are text like any other, so that what a user types cannot pass for the chat's own structure. given: a byte
        for each character, 1 where it may not be part of such a name; all other text becomes the same ids.

        Raises ModelError if the text is not valid Unicode, is longer than LONGEST_TEXT or has an endless word in it, or
        if a special token comes out where none may, as a strange vocabulary might allow.
        """
        if len(text) > LONGEST_TEXT:
            raise ModelError(f"The text has {len(text)} characters, more than the {LONGEST_TEXT} that edgert takes at "
                             "once; shorten it.")
        check_unicode(text, "The text cannot be tokenized")
        # The setting belongs to the shared tokenizer: without the lock another thread could switch it in between.
        with self._lock, _library("The text cannot be tokenized"):
            ids, names = self._encode(text, special)
            if given is not None and any(1 in given[start:end] for start, end in names):
                ids, names = self._encode_around(text, given)
        if (given is not None or not special) and sum(index in self.special_ids for index in ids) != len(names):
            raise ModelError("The text turns into a special token of the model even when read as plain text; "
                             "take special tokens' names out of it.")
        if len(text) > PART:  # the library takes 100 bytes for each, for a moment
            _return_freed_memory()
        if self.add_bos_token if add_bos is None else add_bos:
            if self.bos_token_id is None:
                raise ModelError("The model has no BOS token to add; encode without it.")
            ids.insert(0, self.bos_token_id)
        return ids

    def _encode(self, text: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids, and where in the text the names of special tokens are, none without `special`."""
        self._tokenizer.encode_special_tokens = not special
        ids: list[int] = []
        names: list[tuple[int, int]] = []
        for start, end in self._borders.parts(text) if len(text) > PART else [(0, len(text))]:
            encoding = self._tokenizer.encode(text[start:end], add_special_tokens=False)
            new = encoding.ids
            if special and not self.special_ids.isdisjoint(new):
                names += [(start + first, start + last)
                          for index, (first, last) in zip(new, encoding.offsets, strict=True)
                          if index in self.special_ids]
            ids += new if self._tables is None else self._tables.finish(new, encoding.word_ids)
        return ids, names

    def _encode_around(self, text: str, given: bytes) -> tuple[list[int], list[tuple[int, int]]]:
        """Special tokens where their names are not given, and all in between as plain text.

        As in the library the names cut the text before anything else, the leftmost first and of those the longest.
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
        """The ids of a part of a text; `first` if it begins it."""
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

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD. Raises ModelError for a negative id."""
        data = b"".join(self.token_bytes(index) for index in ids if not (skip_special and index in self.special_ids))
        text = data.decode("utf-8", "replace")
        return text[1:] if self._strips_space and text.startswith(" ") else text

    @cached_property
    def vocab_size(self) -> int:
        """How many tokens there are; a model may have more rows of embedding, as padding."""
        if self._tables is not None:
            return self._tables.vocab_size
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def id_to_token(self, index: int) -> str | None:
        """The token as the vocabulary spells it; None where there is none. Raises ModelError for a negative id."""
        if not 0 <= index < 1 << 32:
            raise ModelError(f"{index} is no token id; ids are whole numbers from 0.")
        if self._tables is None:
            return self._tokenizer.id_to_token(index)
        if (added := self._added.get(index)) is not None:
            return added.decode()
        return self._tables.token(index).decode() or None

    def token_bytes(self, index: int) -> bytes:
        """What the token stands for in the text; nothing for an id without a token, such as the embedding's padding.

        Raises ModelError for a negative id.
        """
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

    def stream_decoder(self, *, skip_special: bool = False) -> "StreamDecoder":
        return StreamDecoder(self, skip_special=skip_special)


class StreamDecoder:
    """Text of tokens as they come: never half a character, and all pieces together are what `decode` gives.

    Bytes are held back, at most three, while they may still become a character.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_next = tokenizer._strips_space

    def push(self, index: int) -> str:
        """The text that is certain after one more token, possibly none. Raises ModelError for a negative id."""
        if index in self._skipped:
            return ""
        return self._piece(self._decoder.decode(self._tokenizer.token_bytes(index)))

    def flush(self) -> str:
        """What was held back: U+FFFD for bytes that were never completed. The decoder then starts anew."""
        text = self._piece(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        self._strip_next = self._tokenizer._strips_space
        return text

    def _piece(self, text: str) -> str:
        if text and self._strip_next:
            self._strip_next = False
            return text.removeprefix(" ")
        return text


def _return_freed_memory() -> None:
    """Parsing a vocabulary frees as much as it keeps, and glibc holds on to it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


@contextmanager
def _library(message: str) -> Iterator[None]:
    """Turns what the library raises into a ModelError: bare Exceptions, and panics, which are not Exceptions."""
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{message}: {' '.join(str(error).split()) or type(error).__name__}.") from error
