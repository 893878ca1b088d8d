"""The tokenizer that a GGUF file describes, as the `tokenizers` library's JSON.

Ids are llama.cpp's (src/llama-vocab.cpp), not those of the original repository's tokenizer.json, where the two differ:
llama.cpp does no Unicode normalisation, for example.
"""

import math
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edgert.errors import SourceError

from .gguf_splits import BOS_BY_DEFAULT, SPLITS, WHOLE_WORDS

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Values of `tokenizer.ggml.token_type` that matter here (gguf-py, TokenType)."""

LONGEST_PIECE = 1024
"""Characters in one SentencePiece token; finding its merges takes time quadratic in them. Real ones have under 100."""

END_OF_GENERATION = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
)
"""Tokens that end a generation by their name alone, whatever their type says."""

FILE_BOUNDARIES = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Fill-in-the-middle tokens after which a new file would begin: they end a generation too. By metadata key or name."""


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The tokenizer's JSON, and `bos_token_id` (int or None), `eos_token_ids` (list of int, the model's own eos first)
    and `add_bos_token` (bool).

    `metadata` is the GGUF file's, as Python values. The tokenizer adds no BOS by itself. Control tokens are special
    tokens of the JSON, user-defined tokens are added tokens that are not special.

    Raises SourceError.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise SourceError(f"The GGUF's tokenizer is of kind {_shown(model)}; known kinds are gpt2 and llama.")
    tokens = _tokens(metadata)
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if ids[token] != index)
        raise SourceError(f"The GGUF's vocabulary names the token {_shown(twice)} twice; the file is damaged.")
    types = _types(metadata, len(tokens))
    pre = _pre(metadata) if model == "gpt2" else None
    generation = _generation(metadata, ids, default_bos=1 if model == "llama" else None,
                             default_eos=2 if model == "llama" else None,
                             default_add_bos=model == "llama" or pre in BOS_BY_DEFAULT)
    special = {index for index, kind in enumerate(types) if kind in (UNKNOWN, CONTROL)}
    special.update(index for token in END_OF_GENERATION if (index := ids.get(token)) is not None)
    try:
        built = _byte_level(metadata, ids, pre) if pre else _sentencepiece(metadata, ids, special)
        strip = _is_phi_3(metadata)
        added = [AddedToken(tokens[i], normalized=False, special=i in special,
                            rstrip=strip and tokens[i] not in ("<unk>", "<s>", "<|endoftext|>"))
                 for i, kind in enumerate(types) if i in special or kind == USER_DEFINED]
        built.add_special_tokens([token for token in added if token.special])
        built.add_tokens([token for token in added if not token.special])
        return built.to_str(), generation
    except SourceError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise SourceError(f"The GGUF's tokenizer cannot be built: {error}.") from error


def _byte_level(metadata: Mapping[str, Any], ids: dict[str, int], pre: str) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners")."""
    merges: dict[tuple[str, str], None] = {}
    for index, merge in enumerate(_strings(metadata, "tokenizer.ggml.merges")):
        space = merge.find(" ", 1)
        left, right = merge[:space], merge[space + 1:]
        if space < 0 or left not in ids or right not in ids or left + right not in ids:
            raise SourceError(f"Merge {index} of the GGUF's tokenizer, {_shown(merge)}, names tokens that are not in "
                              "its vocabulary; the file is damaged.")
        merges.setdefault((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=list(merges), ignore_merges=pre in WHOLE_WORDS))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[pre]),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], ids: dict[str, int], special: set[int]) -> Tokenizer:
    """SentencePiece's BPE: the pair whose token has the best score is merged first; what remains falls back to bytes.

    Kudo and Richardson 2018, "SentencePiece". Between tokens of one score llama.cpp merges the leftmost pair first and
    this the token of the lowest id: a list of merges can say no more. Real vocabularies score every piece differently.
    """
    for byte in range(256):
        if f"<0x{byte:02X}>" not in ids:
            raise SourceError(f"The GGUF's vocabulary has no byte token <0x{byte:02X}>; the file is damaged or of an "
                              "unknown kind.")
    scores = _scores(metadata, len(ids))
    # Special tokens take no part: plain text must never become one.
    parts = {token: index for token, index in ids.items() if index not in special}
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, index in parts.items():
        if len(token) > LONGEST_PIECE:
            raise SourceError(f"Token {index} of the GGUF's vocabulary has {len(token)} characters, more than "
                              f"{LONGEST_PIECE}; the file is damaged.")
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in parts and right in parts:
                ranked.append((-scores[index], index, -cut, left, right))
    ranked.sort()
    prefix = _flag(metadata, "tokenizer.ggml.add_space_prefix", True)
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[merge[3:] for merge in ranked], byte_fallback=True))
    # As normalizers, they act on every stretch of text between added tokens, as llama.cpp does.
    spaces: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer


def _generation(metadata: Mapping[str, Any], ids: dict[str, int], *, default_bos: int | None, default_eos: int | None,
                default_add_bos: bool) -> dict[str, Any]:
    size = len(ids)
    bos = _token_id(metadata, "bos", size, default_bos)
    ends = [_token_id(metadata, "eos", size, default_eos), _token_id(metadata, "eot", size),
            _token_id(metadata, "eom", size)]
    ends += [ids.get(name) for name in END_OF_GENERATION]
    for key, names in FILE_BOUNDARIES.items():
        named = next((ids[name] for name in names if name in ids), None)
        ends.append(_token_id(metadata, key, size, named))
    add_bos = _flag(metadata, "tokenizer.ggml.add_bos_token", default_add_bos)
    if add_bos and bos is None:
        raise SourceError("The GGUF asks for a BOS token before every text, but names none "
                          "(tokenizer.ggml.bos_token_id).")
    return {"bos_token_id": bos, "eos_token_ids": list(dict.fromkeys(i for i in ends if i is not None)),
            "add_bos_token": add_bos}


def _is_phi_3(metadata: Mapping[str, Any]) -> bool:
    """Whether llama.cpp knows the model by its name as one whose added tokens absorb the white space behind them: the
    file does not say so."""
    name = str(metadata.get("general.name", "")).lower()
    return "phi-3" in name or "phi3" in name


def _pre(metadata: Mapping[str, Any]) -> str:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in SPLITS:
        raise SourceError(f"The GGUF's pre-tokenizer {_shown(pre)} is not known; take the model's safetensors files, "
                          "which have a tokenizer.json.")
    return pre


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    if not tokens:
        raise SourceError("The GGUF's vocabulary (tokenizer.ggml.tokens) is empty; the file is damaged.")
    return [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]  # as llama.cpp names them


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    values = metadata.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise SourceError(f"The GGUF's {key} is missing or is not a list of strings; the file is damaged.")
    try:
        "".join(values).encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"The GGUF's {key} holds text that is not valid Unicode; the file is damaged.") from error
    return values


def _types(metadata: Mapping[str, Any], size: int) -> list[int]:
    types = metadata.get("tokenizer.ggml.token_type", [1] * size)
    if not isinstance(types, list) or len(types) != size or not all(type(kind) is int for kind in types):
        raise SourceError(f"The GGUF's tokenizer.ggml.token_type is not a list of {size} whole numbers, one a token; "
                          "the file is damaged.")
    return types


def _scores(metadata: Mapping[str, Any], size: int) -> list[float]:
    scores = metadata.get("tokenizer.ggml.scores")
    if (not isinstance(scores, list) or len(scores) != size
            or not all(type(score) in (int, float) and math.isfinite(score) for score in scores)):
        raise SourceError(f"The GGUF's tokenizer.ggml.scores is not a list of {size} numbers, one a token; "
                          "the file is damaged.")
    return scores


def _token_id(metadata: Mapping[str, Any], name: str, size: int, default: int | None = None) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key, default if default is None or default < size else None)
    if value is not None and (type(value) is not int or not 0 <= value < size):
        raise SourceError(f"The GGUF's {key} is {_shown(value)}, which is no id in a vocabulary of {size} tokens; "
                          "the file is damaged.")
    return value


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, bool):
        raise SourceError(f"The GGUF's {key} is {_shown(value)}, expected true or false; the file is damaged.")
    return value


def _shown(value: Any) -> str:
    """`value` for a message: on one line, and short however long it is."""
    shown = repr(value[:60] if isinstance(value, str) else value)
    return shown if len(shown) <= 80 else shown[:80] + "..."
