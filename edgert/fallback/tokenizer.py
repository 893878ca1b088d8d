"""llama.cpp's tokenizer of a model, with edgert's care for what names special tokens."""

import re
from collections.abc import Iterator

from edgert.errors import ModelError
from edgert.text.tokenizer import AnyTokenizer, check_text

from .connection import Connection
from .messages import Encode, Encoded, Spell, Spelled


class LlamaTokenizer(AnyTokenizer):
    """Asks llama.cpp's process; what a token stands for it asks once."""

    def __init__(self, connection: Connection) -> None:
        opened = connection.opened
        self.bos_token_id, self.add_bos_token = opened.bos, opened.add_bos
        self.eos_token_ids, self.special_ids = tuple(opened.ends), frozenset(opened.special)
        self._connection, self._size = connection, opened.vocab_size
        self._pieces = dict(opened.special)
        self._named = {piece.decode("utf-8", "replace"): token for token, piece in opened.special.items() if piece}
        letter = self._encode(["x"], special=False)[0]
        self.strips_space = b"".join(map(self.token_bytes, letter)) == b" x"

    @property
    def vocab_size(self) -> int:
        return self._size

    def encode(self, text: str, *, special: bool = True, given: bytes | None = None,
               add_bos: bool | None = None) -> list[int]:
        check_text(text)
        if given is not None:
            ids = self._encode_around(text, given)
        else:
            ids = self._plain(self._encode([text], special=special)[0], special) if text else []
        return self._begun(ids, add_bos)

    def encode_within(self, text: str) -> list[int]:
        check_text(text)
        return self._plain(self._encode([text], special=False)[0], False) if text else []

    def _encode(self, texts: list[str], *, special: bool) -> list[list[int]]:
        return self._connection.run(lambda child: child.ask(Encode(texts, special), Encoded)).tokens

    def _encode_around(self, text: str, given: bytes) -> list[int]:
        """Encode with special tokens only where no character of the name is given, and all text between as plain
        text. As in llama.cpp, the text is split at the names before anything else."""
        parts = list(self._parts(text, given))
        encoded = iter(self._encode([part for part in parts if isinstance(part, str)], special=False))
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self._plain(next(encoded), False)
        return ids

    def _parts(self, text: str, given: bytes) -> Iterator[str | int]:
        """Special tokens, and the texts between them."""
        names = sorted((name for name in self._named if name in text), key=len, reverse=True)
        name, end = re.compile("|".join(map(re.escape, names)) or "(?!)"), 0
        for own in re.finditer(rb"\0+", given):
            for match in name.finditer(text, own.start(), own.end()):
                if match.start() > end:
                    yield text[end:match.start()]
                yield self._named[match[0]]
                end = match.end()
        if end < len(text):
            yield text[end:]

    def _plain(self, ids: list[int], special: bool) -> list[int]:
        """The same ids. Raises ModelError if plain text has become a special token all the same."""
        if not special and not self.special_ids.isdisjoint(ids):
            raise ModelError("The text turns into a special token of the model even when read as plain text; "
                             "take special tokens' names out of it.")
        return ids

    def id_to_token(self, index: int) -> str | None:
        return self.token_bytes(index).decode("utf-8", "replace") or None

    def token_bytes(self, index: int) -> bytes:
        if index < 0:
            raise ModelError(f"{index} is no token id; ids are whole numbers from 0.")
        if index >= self._size:
            return b""
        if index not in self._pieces:
            self._ask(index, 1)
        return self._pieces[index]

    def ask_all(self) -> None:
        """Have what all tokens stand for here."""
        self._ask(0, self._size)

    def _ask(self, first: int, count: int) -> None:
        spelled = self._connection.run(lambda child: child.ask(Spell(first, count), Spelled))
        self._pieces.update(zip(range(first, first + count), spelled.pieces, strict=True))
