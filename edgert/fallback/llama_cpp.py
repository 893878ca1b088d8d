"""A GGUF file loaded by llama.cpp, through llama-cpp-python's bindings of its C interface."""

import ctypes
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgert.errors import PeerError

KV_TYPES = {"f32": ("F32", "F32"), "f16": ("F16", "F16"), "q8": ("Q8_0", "Q8_0"), "q4": ("Q8_0", "Q4_0")}
"""What llama.cpp calls edgert's types of the key-value cache: of keys, and of values."""
_ERROR = 4
"""The level of errors in its log."""
_UNKNOWN, _CONTROL = 1, 8
"""Attributes of tokens that plain text never becomes."""


class LlamaCpp:
    """A model and one sequence of tokens that it has computed.

    repack: whether weights are copied into llama.cpp's own layouts where it has one, or all of them stay mapped.
    context: in tokens; None for `usual_context`, or the model's maximum if that is less. flash_attention: None for what
    llama.cpp chooses. kv_type: of KV_TYPES. batch: tokens computed at once. Raises PeerError.
    """

    def __init__(self, cpp: Any, path: str, *, threads: int, context: int | None, usual_context: int = 4096,
                 repack: bool = True, flash_attention: bool | None = None, kv_type: str = "f16",
                 batch: int = 512) -> None:
        """cpp: the module llama_cpp."""
        self._cpp, self._batch, self.length = cpp, batch, 0
        self._errors: list[str] = []
        self._log = cpp.llama_log_callback(self._said)
        cpp.llama_log_set(self._log, ctypes.c_void_p())
        cpp.llama_backend_init()
        model_settings = cpp.llama_model_default_params()
        model_settings.use_extra_bufts = repack
        self._model = cpp.llama_model_load_from_file(path.encode(), model_settings)
        if not self._model:
            raise PeerError(f"{path}: llama.cpp cannot load it{self._why()}")
        if cpp.llama_model_has_encoder(self._model) or not cpp.llama_model_has_decoder(self._model):
            raise PeerError(f"{path}: its model has an encoder, and does not just go on with a text; use another one")
        self._vocab = cpp.llama_model_get_vocab(self._model)
        self.vocab_size: int = cpp.llama_vocab_n_tokens(self._vocab)
        self.longest_context: int = cpp.llama_model_n_ctx_train(self._model)
        self.context = min(usual_context, self.longest_context) if context is None else context
        if self.context > self.longest_context:
            raise PeerError(f"{path}: its model was made for {self.longest_context} tokens at most; a context of "
                            f"{self.context} is too long")
        settings = cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = self.context, batch, batch
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k, settings.type_v = (getattr(cpp, f"GGML_TYPE_{name}") for name in KV_TYPES[kv_type])
        if flash_attention is not None:
            settings.flash_attn_type = int(flash_attention)
        self._context = cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise PeerError(f"{path}: llama.cpp cannot make a context of {self.context} tokens{self._why()}")

    def _said(self, level: int, text: bytes, _data: Any) -> None:
        if level == _ERROR:
            self._errors.append(text.decode("utf-8", "replace").strip())

    def _why(self) -> str:
        """The first error that it has named since this was asked last, as the end of a sentence."""
        first = re.sub(r"^\w+: (error loading model: )?", "", self._errors[0]) if self._errors else ""
        self._errors.clear()
        return f": {first.rstrip('.')}" if first else ""

    # Text

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; BOS is not added. special: names of special tokens in it become those tokens."""
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 16))()
        count = self._cpp.llama_tokenize(self._vocab, data, len(data), room, len(room), False, special)
        return list(room[:count])

    def pieces(self, tokens: Sequence[int]) -> Iterator[bytes]:
        """The bytes of text that each token stands for."""
        room = ctypes.create_string_buffer(256)
        for token in tokens:
            length = self._cpp.llama_token_to_piece(self._vocab, token, room, len(room), 0, True)
            if length < 0:
                room = ctypes.create_string_buffer(-length)
                length = self._cpp.llama_token_to_piece(self._vocab, token, room, len(room), 0, True)
            yield room.raw[:length]

    @property
    def special(self) -> list[int]:
        """Tokens that plain text never becomes."""
        attributes, vocab = self._cpp.llama_vocab_get_attr, self._vocab
        return [token for token in range(self.vocab_size) if attributes(vocab, token) & (_UNKNOWN | _CONTROL)]

    @property
    def bos(self) -> tuple[int | None, bool]:
        """The token that begins a text, and whether texts begin with it by themselves."""
        token = self._cpp.llama_vocab_bos(self._vocab)
        return (None, False) if token < 0 else (token, bool(self._cpp.llama_vocab_get_add_bos(self._vocab)))

    def ends(self, special: Sequence[int]) -> list[int]:
        """Tokens that end an answer, the model's own first. special: those that may."""
        own = [self._cpp.llama_vocab_eos(self._vocab), self._cpp.llama_vocab_eot(self._vocab)]
        return [token for token in dict.fromkeys([*own, *special])
                if token >= 0 and self._cpp.llama_vocab_is_eog(self._vocab, token)]

    @property
    def template(self) -> str | None:
        """The chat template; None where there is none."""
        text = self._cpp.llama_model_chat_template(self._model, None)
        return text.decode("utf-8", "replace") if text else None

    # Computing

    def reset(self, keep: int = 0) -> None:
        """Forget all tokens but the first `keep`. What is left has `length` tokens: none, where the model's memory
        cannot forget only the last ones."""
        memory = self._cpp.llama_get_memory(self._context)
        if keep == self.length:
            return
        if not (keep and self._cpp.llama_memory_seq_rm(memory, 0, keep, -1)):
            self._cpp.llama_memory_clear(memory, True)
            keep = 0
        self.length = keep

    def forward(self, tokens: Sequence[int], *, wanted: int = 1) -> np.ndarray:
        """Compute new tokens; the logits of the last `wanted` ones: float32 of shape (wanted, vocab_size). Raises
        PeerError."""
        rows: list[np.ndarray] = []
        first = len(tokens) - wanted
        for start in range(0, len(tokens), self._batch):
            part = tokens[start:start + self._batch]
            rows += self._decode(part, range(max(first - start, 0), len(part)))
        return np.stack(rows) if rows else np.empty((0, self.vocab_size), np.float32)

    def _decode(self, tokens: Sequence[int], wanted: range) -> list[np.ndarray]:
        """Compute at most one batch; copies of the logits of the tokens that are wanted."""
        cpp, count = self._cpp, len(tokens)
        batch = cpp.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, self.length + i, 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = int(i in wanted)
            if cpp.llama_decode(self._context, batch):
                raise PeerError(f"llama.cpp failed to compute{self._why()}")
        finally:
            cpp.llama_batch_free(batch)
        self.length += count
        found = [cpp.llama_get_logits_ith(self._context, row) for row in wanted]
        if not all(found):
            raise PeerError("llama.cpp computes no next tokens with this model, which is none that writes texts")
        return [np.ctypeslib.as_array(row, (self.vocab_size,)).copy() for row in found]
