"""The process in which llama.cpp runs a model: python -m edgert.fallback.process.

It answers the requests of messages.py, one after another. It ends at once when its standard input does, whatever it is
doing: however its program ends, it stays no longer.
"""

import os
import queue
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgert.errors import PeerError
from edgert.pipes import send

from .messages import (
    Compute,
    Encode,
    Encoded,
    Failed,
    Keep,
    Kept,
    Logits,
    Open,
    Opened,
    Reply,
    Request,
    Spell,
    Spelled,
    receive_request,
)

if TYPE_CHECKING:
    from .llama_cpp import LlamaCpp


def main() -> None:
    """Answer requests until standard input ends."""
    with suppress(OSError):  # where memory runs out, this process is to go, and not its program
        Path("/proc/self/oom_score_adj").write_text("1000")
    output = os.dup(1)
    os.dup2(2, 1)  # whatever llama.cpp prints is no message
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests,), daemon=True).start()
    opening = requests.get()
    assert isinstance(opening, Open)
    try:
        engine = _opened(opening)
    except PeerError as error:
        send(output, Failed(str(error)))
        return
    send(output, _described(engine))
    while True:
        request = requests.get()
        try:
            send(output, *_answer(engine, request))
        except PeerError as error:
            send(output, Failed(str(error)))


def _receive(requests: "queue.SimpleQueue[Request]") -> None:
    with suppress(EOFError):
        while True:
            requests.put(receive_request(0))
    os._exit(0)


def _opened(opening: Open) -> "LlamaCpp":
    try:
        import llama_cpp
    except Exception as error:  # its library may fail to load in many ways
        raise PeerError(f"llama-cpp-python cannot be imported: {error}; install it again: pip install 'edgert[llama]'"
                        ) from None
    from .llama_cpp import LlamaCpp

    return LlamaCpp(llama_cpp, opening.path, threads=opening.threads, context=opening.context,
                    usual_context=opening.usual_context, kv_type=opening.kv_type, batch=opening.batch,
                    repack=False)  # copies would count in full, and round otherwise: the answer is that of any limit


def _described(engine: "LlamaCpp") -> Opened:
    special = engine.special
    bos, add_bos = engine.bos
    return Opened(engine.context, engine.longest_context, engine.vocab_size, bos, add_bos, engine.ends(special),
                  dict(zip(special, engine.pieces(special), strict=True)), engine.template)


def _answer(engine: "LlamaCpp", request: Request) -> tuple[Reply, np.ndarray | None]:
    """Raises PeerError."""
    match request:
        case Encode():
            return Encoded([engine.tokenize(text, special=request.special) for text in request.texts]), None
        case Spell():
            return Spelled(list(engine.pieces(range(request.first, request.first + request.count)))), None
        case Keep():
            engine.reset(request.count)
            return Kept(engine.length), None
        case Compute():
            logits = engine.forward(request.tokens, wanted=request.wanted)
            return Logits(*logits.shape), logits
    raise PeerError("the model is open already")


if __name__ == "__main__":
    main()
