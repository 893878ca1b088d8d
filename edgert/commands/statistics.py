"""What was read from flash during an answer, as JSON has it."""

from typing import Any

from edgert.generation.generation import Statistics
from edgert.model import Model


def flash_use(model: Model, statistics: Statistics) -> dict[str, Any]:
    """Bytes read, waiting and bandwidth of an answer, for a model that streams.

    pinned_share: part of the weights that a token finds in memory. wait_share: part of the decoding time in which
    computing waited. bandwidth, best_bandwidth: bytes a second while decoding, and what the probe of the disk reached.
    read_again: reads that failed or came damaged since loading, and were done once more.
    """
    plan = model.plan
    assert plan.disk is not None
    return {
        "bytes_per_token": round(statistics.flash_bytes_per_token), "bytes_for_prompt": statistics.flash_bytes_prompt,
        "pinned_share": round(plan.pinned_share, 4), "wait_share": round(statistics.flash_wait_share, 4),
        "wait_for_prompt_s": round(statistics.flash_wait_prompt_s, 4),
        "bandwidth": round(statistics.flash_bandwidth), "best_bandwidth": round(plan.disk.bandwidth),
        "read_bytes": plan.placement.chunk_bytes, "readers": plan.placement.readers, "direct": model.direct,
        "read_again": model.read_again,
    }
