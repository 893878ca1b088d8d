"""llama.cpp as the peer to compare with: the same work, measured in the same way, through llama-cpp-python.

    python -m edgert.measuring.peer MODEL.gguf THREADS CONTEXT VARIANT KV_TYPE

answers requests like engine_process.py's.
"""

import ctypes
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgert.errors import PeerError

KV_TYPES = {"f32": ("F32", "F32"), "f16": ("F16", "F16"), "q8": ("Q8_0", "Q8_0"), "q4": ("Q8_0", "Q4_0")}
"""What llama.cpp calls edgert's types of the key-value cache: of keys, and of values."""


def import_llama_cpp() -> Any:
    """Import llama-cpp-python. Raises PeerError if it is not installed."""
    try:
        import llama_cpp
    except ImportError as error:
        raise PeerError("comparing needs llama-cpp-python: pip install 'edgert[peer]' (builds it, some minutes); "
                        f"importing it failed: {error}") from None
    return llama_cpp


class Peer:
    """A GGUF file loaded by llama.cpp: memory-mapped, or with its weights copied into llama.cpp's repacked layout.

    flash_attention: None for what llama.cpp chooses. kv_type: of KV_TYPES. batch: tokens computed at once.
    """

    def __init__(self, path: str, *, threads: int, context: int, repack: bool = True,
                 flash_attention: bool | None = None, kv_type: str = "f16", batch: int = 512) -> None:
        self._cpp = cpp = import_llama_cpp()
        self._log = cpp.llama_log_callback(lambda level, text, data: None)
        cpp.llama_log_set(self._log, ctypes.c_void_p())
        cpp.llama_backend_init()
        model_settings = cpp.llama_model_default_params()
        model_settings.use_extra_bufts = repack
        self._model = cpp.llama_model_load_from_file(path.encode(), model_settings)
        if not self._model:
            raise PeerError(f"{path}: llama.cpp cannot load it; give the GGUF file that the bundle was made from")
        settings = cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, batch, batch
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k, settings.type_v = (getattr(cpp, f"GGML_TYPE_{name}") for name in KV_TYPES[kv_type])
        if flash_attention is not None:
            settings.flash_attn_type = int(flash_attention)
        self._context = cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise PeerError(f"{path}: llama.cpp cannot make a context of {context} tokens")
        self._vocab = cpp.llama_model_get_vocab(self._model)
        self.vocab_size: int = cpp.llama_vocab_n_tokens(self._vocab)
        self._length, self._batch = 0, batch

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text; names of special tokens become those tokens, BOS is not added."""
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 16))()
        count = self._cpp.llama_tokenize(self._vocab, data, len(data), room, len(room), False, True)
        return list(room[:count])

    def reset(self, keep: int = 0) -> None:
        """Forget all tokens but the first `keep`."""
        memory = self._cpp.llama_get_memory(self._context)
        if keep:
            self._cpp.llama_memory_seq_rm(memory, 0, keep, -1)
        else:
            self._cpp.llama_memory_clear(memory, True)
        self._length = keep

    def forward(self, tokens: Sequence[int], *, every: bool = False) -> np.ndarray:
        """Compute new tokens; logits of the last, or of every one: float32 of shape (1 or n, vocab_size)."""
        rows = []
        for start in range(0, len(tokens), self._batch):
            part = tokens[start:start + self._batch]
            wanted = range(len(part)) if every else [len(part) - 1] if start + len(part) == len(tokens) else []
            rows += self._decode(part, wanted)
        return np.stack(rows)

    def _decode(self, tokens: Sequence[int], wanted: Sequence[int]) -> list[np.ndarray]:
        """Compute at most one batch; copies of the logits of the tokens that are wanted."""
        cpp, count = self._cpp, len(tokens)
        batch = cpp.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, self._length + i, 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = int(i in wanted)
            if cpp.llama_decode(self._context, batch):
                raise PeerError("llama.cpp failed to compute")
        finally:
            cpp.llama_batch_free(batch)
        self._length += count
        return [np.ctypeslib.as_array(cpp.llama_get_logits_ith(self._context, row), (self.vocab_size,)).copy()
                for row in wanted]


def main() -> None:
    from .engine_process import Measured, one_by_one, serve
    path, threads, context, variant, kv_type = sys.argv[1:]
    started = time.perf_counter()
    peer = Peer(path, threads=int(threads), context=int(context), repack=variant.startswith("repack"),
                flash_attention="no flash" not in variant, kv_type=kv_type or "f16")
    serve(Measured(one_by_one(peer.forward), peer.forward, peer.reset), time.perf_counter() - started)


if __name__ == "__main__":
    main()
