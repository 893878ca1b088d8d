"""llama.cpp as the peer to compare with: the same work, measured in the same way, through llama-cpp-python.

    python -m edgert.measuring.peer MODEL.gguf THREADS CONTEXT VARIANT KV_TYPE

answers requests like engine_process.py's.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgert.errors import PeerError
from edgert.fallback.llama_cpp import LlamaCpp


def import_llama_cpp() -> Any:
    """Import llama-cpp-python. Raises PeerError if it is not installed."""
    try:
        import llama_cpp
    except ImportError as error:
        raise PeerError("comparing needs llama-cpp-python: pip install 'edgert[llama]' (builds it, some minutes); "
                        f"importing it failed: {error}") from None
    return llama_cpp


class Peer(LlamaCpp):
    """A GGUF file loaded by llama.cpp: memory-mapped, or with its weights copied into llama.cpp's repacked layout."""

    def __init__(self, path: str, *, threads: int, context: int, **settings: Any) -> None:
        """settings: of LlamaCpp. Raises PeerError."""
        super().__init__(import_llama_cpp(), path, threads=threads, context=context, **settings)

    def forward(self, tokens: Sequence[int], *, every: bool = False, wanted: int = 1) -> np.ndarray:
        """Compute new tokens; logits of the last, or of every one: float32 of shape (1 or n, vocab_size)."""
        return super().forward(tokens, wanted=len(tokens) if every else wanted)


def main() -> None:
    from .engine_process import Measured, one_by_one, serve
    path, threads, context, variant, kv_type = sys.argv[1:]
    started = time.perf_counter()
    peer = Peer(path, threads=int(threads), context=int(context), repack=variant.startswith("repack"),
                flash_attention="no flash" not in variant, kv_type=kv_type or "f16")
    serve(Measured(one_by_one(peer.forward), peer.forward, peer.reset), time.perf_counter() - started)


if __name__ == "__main__":
    main()
