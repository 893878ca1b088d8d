"""The tokenizer in a folder in Hugging Face's layout: its JSON, the special tokens around it, and the chat template."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgert.errors import ModelError, SourceError
from edgert.text.tokenizer import Tokenizer as ModelTokenizer

from .reading import read_text

_MAX_JSON = 64 << 20
_MAX_TOKENIZER = 256 << 20
_MAX_TEMPLATE = 16 << 20


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises SourceError."""
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file")
    try:
        value = json.loads(read_text(path, _MAX_JSON))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path}: is not a JSON object")
    return value


def read_tokenizer(folder: Path, config: Mapping[str, Any],
                   vocab_size: int) -> tuple[str, dict[str, Any], str | None]:
    """tokenizer.json as it stands, `Source.generation`, and the chat template where there is one.

    config: the object in config.json. vocab_size: rows of the embedding, which no token id may be past.
    Raises SourceError.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        for older in ("tokenizer.model", "vocab.json"):
            if (folder / older).is_file():
                raise SourceError(f"{folder}: has a {older} but no tokenizer.json: make one with transformers' "
                                  "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)")
        raise SourceError(f"{path}: there is no such file: fetch it from where the model came from")
    text = read_text(path, _MAX_TOKENIZER)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise SourceError(f"{path}: is not a tokenizer ({error})") from error
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 0 <= highest < vocab_size:
        raise SourceError(f"{path}: has token ids up to {highest}, but the model has {vocab_size} embeddings")
    try:
        ModelTokenizer.from_json(text)  # what no bundle could be loaded with, hours later
    except ModelError as error:
        raise SourceError(f"{path}: {error}") from None
    settings = _optional_json(folder / "tokenizer_config.json")
    defaults = {**config, **_optional_json(folder / "generation_config.json")}
    generation = _generation(tokenizer, json.loads(text), settings, defaults, vocab_size)
    return text, generation, _chat_template(folder, settings)


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _generation(tokenizer: Tokenizer, content: Mapping[str, Any], settings: Mapping[str, Any],
                defaults: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    bos = _token_ids(defaults.get("bos_token_id"), vocab_size) or _named(tokenizer, settings.get("bos_token"))
    eos = _token_ids(defaults.get("eos_token_id"), vocab_size)
    # A chat model's tokenizer often ends a turn with another token than its configuration says: both end the answer.
    eos += [token for token in _named(tokenizer, settings.get("eos_token")) if token not in eos]
    add_bos = settings.get("add_bos_token")
    if not isinstance(add_bos, bool):
        first = _first_of_template(content.get("post_processor"))
        add_bos = first is not None and [tokenizer.token_to_id(first)] == bos[:1]
    return {"bos_token_id": bos[0] if bos else None, "eos_token_ids": eos, "add_bos_token": add_bos and bool(bos)}


def _token_ids(value: object, vocab_size: int) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token for token in values if type(token) is int and 0 <= token < vocab_size]


def _named(tokenizer: Tokenizer, token: object) -> list[int]:
    """The id of a token given as text, or as an object with its text in `content`; none where there is none."""
    content = token.get("content") if isinstance(token, dict) else token
    number = tokenizer.token_to_id(content) if isinstance(content, str) else None
    return [] if number is None else [number]


def _first_of_template(processor: object) -> str | None:
    """The special token that a `TemplateProcessing` post-processor puts in front of a text."""
    if not isinstance(processor, dict):
        return None
    if processor.get("type") == "Sequence":
        return next((token for part in processor["processors"] if (token := _first_of_template(part))), None)
    if processor.get("type") != "TemplateProcessing" or not processor["single"]:
        return None
    special = processor["single"][0].get("SpecialToken")
    return special["id"] if special else None


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path, _MAX_TEMPLATE)
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise SourceError(f"{folder / 'tokenizer_config.json'}: chat_template is not text")
    if template is not None and any("\ud800" <= c <= "\udfff" for c in template):  # JSON can, UTF-8 cannot
        raise SourceError(f"{folder / 'tokenizer_config.json'}: chat_template has half a surrogate pair")
    return template
