"""Predicts the speed of a plan: reading and computing go on at the same time, and the slower one sets the pace."""

from collections.abc import Callable
from dataclasses import dataclass

from edgert.bundle import Header
from edgert.bundle.header import HEAD
from edgert.kernels.formats import FORMATS, SLAB
from edgert.residency.device import Device

from .plan import Plan

PROMPT = 200
"""Length of the prompt, in tokens, for which the time to the first token is predicted."""
_MEASURED = (1, 16, 64)
_AROUND_S = 3e-4
"""Seconds of Python per token: sampling, decoding the text, waking the threads."""

Seconds = Callable[[int], tuple[float, float]]
"""From tokens at once (1, 16 or 64) to seconds: for all layers, and for one row of the output head."""


@dataclass(frozen=True)
class Prediction:
    """Predicted speed.

    decode_tok_s: tokens per second of the answer. first_token_s: seconds to its first token, for a prompt of PROMPT
    tokens. limit: what takes longer for a token, "flash" or "computing".
    """

    decode_tok_s: float
    first_token_s: float
    limit: str


def predict(header: Header, plan: Plan, disk: Device, seconds: Seconds, prompt: int = PROMPT) -> Prediction:
    """Predict the speed of a plan at the start of a conversation.

    seconds: measuring.compute.Rehearsal.seconds. disk: what the bundle is on, also where the plan does not stream.
    """
    row = _embedding_row_s(header, plan, disk)
    head = seconds(1)[1]
    reading, computing = plan.streamed / disk.bandwidth, row + seconds(1)[0] + head + _AROUND_S
    passes = [plan.chunk] * (prompt // plan.chunk) + ([prompt % plan.chunk] if prompt % plan.chunk else [])
    head_streamed = header.sections[HEAD].length - plan.parts["pinned output head"]
    prompt_reading = (len(passes) * (plan.streamed - head_streamed) + head_streamed) / disk.bandwidth
    prompt_computing = prompt * row + sum(_layers_s(tokens, seconds) for tokens in passes) + head
    return Prediction(1 / max(reading, computing), max(prompt_reading, prompt_computing),
                      "flash" if reading > computing else "computing")


def _layers_s(tokens: int, seconds: Seconds) -> float:
    """Seconds of all layers for this many tokens at once: interpolated, or in proportion to the largest measured."""
    most = _MEASURED[-1]
    if tokens >= most:
        return seconds(most)[0] * tokens / most
    low = max(n for n in _MEASURED if n <= tokens)
    high = min(n for n in _MEASURED if n > tokens)
    below, above = seconds(low)[0], seconds(high)[0]
    return below + (above - below) * (tokens - low) / (high - low)


def _embedding_row_s(header: Header, plan: Plan, disk: Device) -> float:
    """Average seconds of waiting for a token's embedding row: it is read alone if it is not in memory."""
    embedding = header.embedding
    length = header.sections[embedding.section].length
    if embedding.section == HEAD:
        missing = float(plan.parts["pinned output head"] < length)
    else:
        missing = 1 - min(plan.parts["pinned embedding"] / length, 1)
    slab = SLAB * FORMATS[embedding.format].tile_bytes(embedding.columns)
    return missing * (disk.latency_s + slab / disk.bandwidth)
