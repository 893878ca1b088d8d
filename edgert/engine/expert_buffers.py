"""The memory that programs of mixtures of experts work in, beside what all need (buffers.py)."""

from collections.abc import Callable

from edgert.bundle import Header
from edgert.kernels.expert_records import expert_scratch_bytes
from edgert.kernels.formats import BLOCK, FORMATS, TILE
from edgert.models.config import Config

Rows = Callable[[int, int], tuple[int, int]]
"""(count, bytes of a row) to offset and stride."""


def expert_places(config: Config, header: Header, tokens: int, rows: Rows) -> dict[str, tuple[int, int]]:
    """Offset and stride of each, for so many new tokens at once; nothing where there are no experts.

    routing         (tokens, experts)                what the router gives
    experts         (tokens, experts a token) int64  those of each token
    expert_weights  (tokens, experts a token)
    guess_routing, guess_experts, guess_weights      the same for the next layer, of what this one was given
    guess_h         (tokens, hidden_size)            that, normalized as it would be there
    expert_starts   (2 * experts + 2,) int64         where each expert's tokens begin, and which have some
    expert_rows     (tokens * experts a token,) int64, and expert_places: each expert's tokens, and where each stands
    expert_claims   (experts * (units + 1),) int64   what has been taken, and what is done
    expert_short    (1,) int64                       whether there is too little room for all that are needed
    expert_totals   (tokens * experts a token, hidden_size)
    expert_partial  (experts a token * units, hidden_size)  of one token
    """
    if not config.experts:
        return {}
    pairs, units = tokens * config.experts_per_token, max(n.expert_units(config).per_expert for n in header.neurons)
    result = 64 * -(-config.hidden_size // TILE)
    routing = 4 * -(-config.experts // TILE) * TILE
    return {
        "routing": rows(tokens, routing),
        "experts": rows(1, 8 * pairs),
        "expert_weights": rows(1, 4 * pairs),
        "guess_routing": rows(tokens, routing),
        "guess_experts": rows(1, 8 * pairs),
        "guess_weights": rows(1, 4 * pairs),
        "guess_h": rows(tokens, 4 * BLOCK * -(-config.hidden_size // BLOCK)),
        "expert_starts": rows(1, 8 * (2 * config.experts + 2)),
        "expert_rows": rows(1, 8 * pairs),
        "expert_places": rows(1, 8 * pairs),
        "expert_claims": rows(1, 8 * config.experts * (units + 1)),
        "expert_short": rows(1, 8),
        "expert_totals": rows(1, pairs * result),
        "expert_partial": rows(1, config.experts_per_token * units * result),
    }


def expert_scratch(config: Config, header: Header) -> int:
    """Bytes of scratch that a thread needs for experts; 0 where there are none."""
    if not config.experts:
        return 0
    blocks, found = -(-config.hidden_size // BLOCK), 0
    for n in header.neurons:
        in_unit, gate_up, down = n.expert_units(config).in_unit, FORMATS[n.gate_up], FORMATS[n.down]
        found = max(found, expert_scratch_bytes(
            -(-config.hidden_size // TILE), blocks * gate_up.activation.block_bytes,
            in_unit * down.activation.block_bytes, in_unit))
    return found
