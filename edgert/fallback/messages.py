"""What a program and its llama.cpp process tell each other (edgert/pipes.py): a request, its answer, the next request.
"""

import numpy as np
from msgspec import Struct

from edgert.pipes import receive


class Open(Struct, tag=True, frozen=True):
    """The first request: load a GGUF file. Answered by Opened.

    context: in tokens; None for `usual_context`, or the model's maximum if less. batch: tokens that are computed at
    once, at most. kv_type: of llama_cpp.KV_TYPES.
    """

    path: str
    threads: int
    context: int | None
    usual_context: int
    batch: int
    kv_type: str


class Encode(Struct, tag=True, frozen=True):
    """Tokenize texts, each for itself, without BOS. special: names of special tokens become those. Answered by
    Encoded."""

    texts: list[str]
    special: bool


class Spell(Struct, tag=True, frozen=True):
    """What so many tokens stand for, from the first one on. Answered by Spelled."""

    first: int
    count: int


class Keep(Struct, tag=True, frozen=True):
    """Forget all tokens but the first so many. Answered by Kept."""

    count: int


class Compute(Struct, tag=True, frozen=True):
    """Compute tokens after those that are kept. wanted: of how many of the last ones logits are. Answered by Logits."""

    tokens: list[int]
    wanted: int


class Opened(Struct, tag=True, frozen=True):
    """vocab_size: how many tokens, and logits. special: what special tokens are called. ends: tokens that end an
    answer, the model's own first."""

    context: int
    longest_context: int
    vocab_size: int
    bos: int | None
    add_bos: bool
    ends: list[int]
    special: dict[int, bytes]
    template: str | None


class Encoded(Struct, tag=True, frozen=True):
    tokens: list[list[int]]


class Spelled(Struct, tag=True, frozen=True):
    pieces: list[bytes]


class Kept(Struct, tag=True, frozen=True):
    """count: of tokens; 0 where the model's memory cannot forget only the last ones."""

    count: int


class Logits(Struct, tag=True, frozen=True):
    """rows: how many are in the array behind it, each of `columns`."""

    rows: int
    columns: int


class Failed(Struct, tag=True, frozen=True):
    """The request cannot be answered. why: one sentence, or a part of one."""

    why: str


Request = Open | Encode | Spell | Keep | Compute
Reply = Opened | Encoded | Spelled | Kept | Logits | Failed


def receive_request(descriptor: int) -> Request:
    """Read a request. Raises EOFError where the other one has ended."""
    request: Request = receive(descriptor, Request)[0]
    return request


def receive_reply(descriptor: int) -> tuple[Reply, np.ndarray]:
    """Read an answer, and its logits: of shape (rows, columns), which without any is (0, 0). Raises EOFError where the
    other one has ended."""
    reply, logits = receive(descriptor, Reply)
    return reply, logits.reshape((reply.rows, reply.columns) if isinstance(reply, Logits) else (0, 0))
