"""Predicts the speed of a plan: reading and computing go on at the same time, and the slower one sets the pace.

With speculation a pass checks several guesses, which what stays in memory has computed before it. How often these are
right depends on the model and the text; what is predicted of it is an estimate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgert.bundle import Header
from edgert.bundle.header import HEAD
from edgert.kernels.formats import FORMATS, SLAB
from edgert.residency.device import Device
from edgert.residency.drafting import Drafting

from .plan import Plan

PROMPT = 200
"""Length of the prompt, in tokens, for which the time to the first token is predicted."""
MEASURED = (1, 4, 16, 64)
"""Tokens at once of which it is known how long they take."""
_AROUND_S = 3e-4
"""Seconds of Python per token: sampling, decoding the text, waking the threads."""
_OF_NEURONS = ((0, 0.0), (0.67, 0.72), (0.77, 0.76), (1, 1.0))
"""What a draft's agreement is multiplied by, by the share of the neurons that take part. This, and the next, were
measured on Qwen2.5-Coder-1.5B, with prompts of many kinds (docs/notes/speculation.md)."""
_OF_DETAILS = ((0, 0.77), (0.43, 0.88), (0.77, 0.92), (1, 1.0))
"""The agreement by the share of those neurons whose details take part too."""

_TAKEN = ((0, 0.0), (0.005, 0.13), (0.01, 0.22), (0.02, 0.33), (0.03, 0.41), (0.05, 0.49), (0.1, 0.55), (1, 0.57))
"""The share of wrong guesses that are taken all the same, by what an answer may lose (generation/lenience.py)."""

Seconds = Callable[[int], tuple[float, float]]
"""From tokens at once, one of MEASURED, to seconds: for all layers, and for as many rows of the output head."""


@dataclass(frozen=True)
class Speculation:
    """What guessing is expected to bring.

    agreement: the share of right ones among guesses that follow right ones. guesses: how many before a pass are best.
    tokens_per_pass: of the answer. draft_s, verify_s: seconds of a guess, and of a pass that checks that many.
    decode_tok_s: tokens per second of the answer.
    """

    agreement: float
    guesses: int
    tokens_per_pass: float
    draft_s: float
    verify_s: float
    decode_tok_s: float


@dataclass(frozen=True)
class Prediction:
    """Predicted speed.

    decode_tok_s: tokens per second of the answer, one a pass. first_token_s: seconds to its first token, for a prompt
    of PROMPT tokens. limit: what takes longer for a token, "flash" or "computing". speculation: None where nothing is
    streamed, where what stays in memory makes no draft, and where guessing would not pay.
    """

    decode_tok_s: float
    first_token_s: float
    limit: str
    speculation: Speculation | None = None

    @property
    def best_tok_s(self) -> float:
        """Tokens per second with speculation where that is faster."""
        return self.decode_tok_s if self.speculation is None else self.speculation.decode_tok_s


def predict(header: Header, plan: Plan, disk: Device, seconds: Seconds, draft_seconds: tuple[float, float],
            prompt: int = PROMPT, max_loss: float = 0.0) -> Prediction:
    """Predict the speed of a plan at the start of a conversation.

    seconds, draft_seconds: measuring.compute.Rehearsal's. disk: what the bundle is on, also where the plan does not
    stream. max_loss: what answers may lose; guesses that are taken for it count as right ones.
    """
    row = _embedding_row_s(header, plan, disk)
    head = seconds(1)[1]
    reading, computing = plan.streamed / disk.bandwidth, row + seconds(1)[0] + head + _AROUND_S
    passes = [plan.chunk] * (prompt // plan.chunk) + ([prompt % plan.chunk] if prompt % plan.chunk else [])
    head_streamed = header.sections[HEAD].length - plan.parts["pinned output head"]
    prompt_reading = (len(passes) * (_read_by_many(header, plan) - head_streamed) + head_streamed) / disk.bandwidth
    prompt_computing = prompt * row + sum(_layers_s(tokens, seconds) for tokens in passes) + head
    plain = 1 / max(reading, computing)
    best = None
    if Drafting.possible(header, plan.placement) and not plan.placement.window:  # what more tokens read is not known
        def verify_s(tokens: int) -> float:
            layers, rows = (_between([(n, seconds(n)[of]) for n in MEASURED], tokens) for of in (0, 1))
            return max(reading, layers + rows + tokens * (row + _AROUND_S))

        right = _agreement(header, plan)
        taken = right + (1 - right) * _between(_TAKEN, max_loss)
        best = _best_speculation(taken, _draft_s(header, plan, seconds, draft_seconds), verify_s,
                                 min(plan.verify_rows, plan.chunk) - 1)
    return Prediction(plain, max(prompt_reading, prompt_computing), "flash" if reading > computing else "computing",
                      best if best is not None and best.decode_tok_s > plain else None)


def _read_by_many(header: Header, plan: Plan) -> int:
    """Bytes read for a pass of many tokens: of a sparse model they need nearly all neurons."""
    if not plan.placement.window:
        return plan.streamed
    return plan.streamed + sum(n.groups * n.group_bytes for n in header.neurons) - plan.missed


def tokens_per_pass(agreement: float, guesses: int) -> float:
    """How many tokens of the answer a pass brings that checks so many guesses: those up to the first wrong one, and the
    model's own choice after them (Leviathan et al. 2023)."""
    return sum(agreement ** n for n in range(guesses + 1))


def _best_speculation(agreement: float, draft_s: float, verify_s: Callable[[int], float],
                      most: int) -> Speculation | None:
    """The best number of guesses before each pass, from 1 to `most`. verify_s: of a pass for so many tokens."""
    found = []
    for guesses in range(1, most + 1):
        tokens, check = tokens_per_pass(agreement, guesses), verify_s(guesses + 1)
        found.append(Speculation(agreement, guesses, tokens, draft_s, check, tokens / (guesses * draft_s + check)))
    return max(found, key=lambda speculation: speculation.decode_tok_s, default=None)


def _drafting_shares(header: Header, plan: Plan) -> tuple[float, float]:
    """The shares of the neuron groups that take part in a draft, and that take part with all of their bits."""
    pinned = plan.placement.pinned
    groups = sum(n.groups for n in header.neurons)
    if not groups:  # its matrices stand for themselves, and all are there, or there is no draft
        return 1.0, 1.0
    return (sum(pinned[n.section] for n in header.neurons) / groups,
            sum(pinned[n.details or n.section] for n in header.neurons) / groups)


def _agreement(header: Header, plan: Plan) -> float:
    present, whole = _drafting_shares(header, plan)
    return _between(_OF_NEURONS, present) * _between(_OF_DETAILS, whole / present)


def _draft_s(header: Header, plan: Plan, seconds: Seconds, draft_seconds: tuple[float, float]) -> float:
    """Seconds of a guess: with the neurons, and the rows of the output head, that stay in memory."""
    present, whole = _drafting_shares(header, plan)
    without, bases = draft_seconds
    layers = without + (bases - without) * (present - whole) + (seconds(1)[0] - without) * whole
    rows = plan.parts["pinned output head"] / header.sections[HEAD].length
    return layers + seconds(1)[1] * rows + _AROUND_S


def _layers_s(tokens: int, seconds: Seconds) -> float:
    """Seconds of all layers for this many tokens at once: interpolated, or in proportion to the largest measured."""
    most = MEASURED[-1]
    if tokens >= most:
        return seconds(most)[0] * tokens / most
    return _between([(n, seconds(n)[0]) for n in MEASURED], tokens)


def _between(points: Sequence[tuple[float, float]], at: float) -> float:
    """Interpolated linearly. points: with ascending x."""
    (x, y), (end, y_end) = next((pair for pair in pairwise(points) if at <= pair[1][0]), points[-2:])
    return y + (y_end - y) * (at - x) / (end - x)


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
