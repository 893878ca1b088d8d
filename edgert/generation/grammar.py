"""Grammars: which tokens may come next, so that an answer is what a JSON schema, an expression or a grammar allows.

The work is llguidance's (github.com/guidance-ai/llguidance): an Earley parser over a lexer of derivatives, and a trie
of the vocabulary's bytes. It is imported when it is first needed.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgert.errors import GrammarError, ModelError
from edgert.text.tokenizer import AnyTokenizer, return_freed_memory

if TYPE_CHECKING:
    from llguidance import LLMatcher

PARSER_BYTES = 24 << 20
"""What the parsers of one model's answers take at most, as measured (docs/notes/structured-output.md)."""
TABLE_BYTES = 200
"""What tables of a vocabulary take at most, for each token."""
_LEXER_STATES = 8_000
"""Each takes one or two kilobytes; common schemas have hundreds."""
_GRAMMAR_SIZE = 100_000
"""Symbols in a grammar."""
COMPACT = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""As Python's json.dumps writes it, and so most of what models have read. Where white space is free, weak models write
nothing else."""

Schema = Mapping[str, Any] | str | bool
"""A JSON schema: an object, its text, or True for any value."""


class Grammar(NamedTuple):
    """What an answer may be. kind: json, regex or lark, llguidance's names. text: the schema, expression or grammar."""

    kind: str
    text: str

    @classmethod
    def of(cls, schema: Schema | None, regex: str | None, grammar: str | None) -> "Grammar | None":
        """The one that was given, None if there was none. Raises ModelError."""
        given = {"schema": schema, "regex": regex, "grammar": grammar}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ModelError(f"{' and '.join(names)} were given; an answer follows one of them")
        if schema is not None:
            return cls("json", schema_text(schema))
        for kind, name in (("regex", "regex"), ("lark", "grammar")):
            if (text := given[name]) is not None:
                if not isinstance(text, str):
                    raise ModelError(f"{name} is of type {type(text).__name__}; it is a text")
                return cls(kind, text)
        return None


def schema_text(schema: Any) -> str:
    """A JSON schema as text. Raises ModelError for what is none."""
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"the schema is no JSON: {error}") from None
    if value is True:
        return "{}"
    if not isinstance(value, Mapping):
        raise ModelError(f"the schema is {text[:60]}; a JSON schema is an object")
    return text


def grammar_bytes(vocab_size: int) -> int:
    """What grammars take at most, with a vocabulary of so many tokens."""
    return PARSER_BYTES + TABLE_BYTES * vocab_size


class Grammars:
    """Makes constraints for the answers of one model, from tables of its vocabulary that take some memory."""

    def __init__(self, tokenizer: AnyTokenizer, vocab_size: int) -> None:
        """vocab_size: of the model's logits. Raises ModelError."""
        if not tokenizer.eos_token_ids:
            raise ModelError("the model names no token that ends a text; structured output needs one")
        from llguidance import LLTokenizer

        self._ends = tokenizer.eos_token_ids
        self._special = tokenizer.special_ids
        self._vocab_size = vocab_size
        vocabulary = _Vocabulary(tokenizer, vocab_size)
        self._tokenizer = LLTokenizer(vocabulary, vocab_size, list(self._ends), slices=[])  # type: ignore[arg-type]
        vocabulary.tokens.clear()  # they were copied
        return_freed_memory()

    def constraint(self, grammar: Grammar) -> "Constraint":
        """Raises GrammarError for a grammar that is wrong, or not supported."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_lexer_states=_LEXER_STATES, max_grammar_size=_GRAMMAR_SIZE, verbose_errors=False)
        try:
            if grammar.kind == "json":
                text = LLMatcher.grammar_from_json_schema(grammar.text, defaults=COMPACT)  # type: ignore[arg-type]
            elif grammar.kind == "regex":
                text = LLMatcher.grammar_from_regex(grammar.text)
            else:
                text = LLMatcher.grammar_from_lark(grammar.text)
            matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=limits)
            first = matcher.compute_bitmask()  # some errors come only with it
        except ValueError as error:  # nested too deeply, for example
            raise _unusable(grammar, str(error)) from None
        if matcher.is_error():
            raise _unusable(grammar, _first_line(matcher))
        return Constraint(matcher, first, self._vocab_size, self._ends, self._special)


def _unusable(grammar: Grammar, why: str) -> GrammarError:
    what = {"json": "schema", "lark": "grammar"}.get(grammar.kind, grammar.kind)
    return GrammarError(f"the {what} cannot be used: {why}")


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: AnyTokenizer, vocab_size: int) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos_token_ids[0], tokenizer.bos_token_id
        self.tokens = [tokenizer.token_bytes(index) for index in range(vocab_size)]
        self.special_token_ids = sorted({*tokenizer.special_ids, *tokenizer.eos_token_ids})
        self._encode = tokenizer.encode_within

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode())


class Constraint:
    """What one answer may be. All it says is a function of the answer's tokens so far.

    Where the grammar leaves but one text to go on with, its tokens are *forced*: those that the tokenizer makes of that
    text. They need no choice, so they can be computed together, as a prompt is.
    """

    def __init__(self, matcher: "LLMatcher", first: bytes, vocab_size: int, ends: Sequence[int],
                 special: frozenset[int]) -> None:
        """first: the mask of the first token. ends: tokens that end an answer. special: those that are no text."""
        self._matcher, self._vocab_size, self._ends, self._special = matcher, vocab_size, ends, special
        self._tokens: list[int] = []
        self._masks: list[bytes | None] = [first]
        self._forced = [self._find_forced()]

    def forced(self, answer: Sequence[int]) -> list[int]:
        """The tokens that must come next; often none."""
        return self._forced[-1] if self._follow(answer) else []

    def allowed(self, answer: Sequence[int]) -> np.ndarray | None:
        """Which tokens may come next: bool of shape (vocab_size,). None if `answer` itself is not allowed, as a guess
        may be. Raises GrammarError if the grammar turns out to be too complex."""
        if not self._follow(answer):
            return None
        if self._forced[-1]:
            only = np.zeros(self._vocab_size, bool)
            only[self._forced[-1][0]] = True
            return only
        return np.unpackbits(np.frombuffer(self._mask(), np.uint8), count=self._vocab_size,
                             bitorder="little").view(bool)

    def complete(self, answer: Sequence[int]) -> bool:
        """Whether nothing can follow but the answer's end."""
        allowed = None if self.forced(answer) else self.allowed(answer)
        return allowed is not None and np.count_nonzero(allowed) == np.count_nonzero(allowed[list(self._ends)])

    def _mask(self) -> bytes:
        mask = self._masks[-1]
        if mask is None:
            mask = self._masks[-1] = self._matcher.compute_bitmask()
            self._check()
        return mask

    def _follow(self, answer: Sequence[int]) -> bool:
        """Have the parser where these tokens end. Returns whether the grammar allows them."""
        known, answer = self._tokens, list(answer)
        same = len(known)
        if answer[:same] != known:
            same = next(i for i, token in enumerate(known) if answer[i:i + 1] != [token])
            self._matcher.rollback(len(known) - same)
            del known[same:], self._masks[same + 1:], self._forced[same + 1:]
        for token in answer[same:]:
            if token in self._ends or not self._matcher.try_consume_tokens([token]):
                self._check()
                return False
            if len(known) >= _MASKS:
                self._masks[len(known) - _MASKS] = None
            known.append(token)
            self._masks.append(None)
            before = self._forced[-1]
            self._forced.append(before[1:] if before[1:] and before[0] == token else self._find_forced())
        return True

    def _find_forced(self) -> list[int]:
        tokens = self._matcher.compute_ff_tokens()
        self._check()
        tokens = tokens[:next((i for i, token in enumerate(tokens) if token in self._special), len(tokens))]
        return tokens[:self._matcher.validate_tokens(tokens)] if tokens else []

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the answer's grammar cannot be followed any further: {_first_line(self._matcher)}")


_MASKS = 32
"""Masks that are kept: those of the tokens that were guessed last, which are asked for again when they are checked."""


def _first_line(matcher: "LLMatcher") -> str:
    return matcher.get_error().strip().partition("\n")[0][:300]
