"""/tokenize, /detokenize and /tokenizer_info, with the fields that vLLM and llama.cpp give them."""

from typing import Any

from msgspec import Struct

from edgert import LanguageModel

from .errors import ApiError
from .messages import Message, turns_of
from .requests import Token
from .tokens import name_of


class TokenizeRequest(Struct):
    """A text, which llama.cpp calls content, or messages."""

    prompt: str | None = None
    content: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct):
    tokens: list[Token]


def tokenized(model: LanguageModel, asked: TokenizeRequest) -> dict[str, Any]:
    """The token ids of a text, or of a conversation. Raises ApiError and EdgertError."""
    text = asked.prompt if asked.prompt is not None else asked.content
    if (text is None) == (asked.messages is None):
        raise ApiError(400, "give a prompt or messages", param="prompt")
    if text is not None:
        ids = model.tokenizer.encode(text, add_bos=False if asked.add_special_tokens is False else None)
    else:
        ids = model.render(turns_of(asked.messages or []))
    names = {"token_strs": [name_of(model, token) for token in ids]} if asked.return_token_strs else {}
    return {"count": len(ids), "max_model_len": model.context, "tokens": ids, **names}


def detokenized(model: LanguageModel, asked: DetokenizeRequest) -> dict[str, Any]:
    """The text of token ids."""
    text = model.tokenizer.decode(asked.tokens)
    return {"prompt": text, "content": text}


def information(model: LanguageModel) -> dict[str, Any]:
    """What evaluations ask of a tokenizer: its special tokens, and the chat template."""
    tokenizer = model.tokenizer
    bos, eos = tokenizer.bos_token_id, next(iter(tokenizer.eos_token_ids), None)
    return {"tokenizer_class": "edgert", "model_max_length": model.context, "vocab_size": tokenizer.vocab_size,
            "bos_token": None if bos is None else tokenizer.id_to_token(bos),
            "eos_token": None if eos is None else tokenizer.id_to_token(eos),
            "pad_token": None, "add_bos_token": tokenizer.add_bos_token, "chat_template": model.chat_template}
