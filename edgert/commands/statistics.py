"""What was read from flash during an answer, and what was guessed, for the output of --json."""

from dataclasses import asdict
from typing import Any

from edgert.bundle.header import NeuronLoss
from edgert.generation.generation import Statistics
from edgert.model import Model


def flash_use(model: Model, statistics: Statistics) -> dict[str, Any]:
    """What an answer read from flash and how long it waited for it, for a model whose weights are not all in memory.

    pinned_share: the fraction of the weights that stays in memory. wait_share: the fraction of the decoding time spent
    waiting for flash. bandwidth, best_bandwidth: bytes per second while decoding, and when the disk was measured.
    read_again: how many reads since loading failed, or brought damaged data, and were repeated. experts: of a mixture
    of experts, what was needed, missed and guessed since loading (residency.source.ExpertCounts).
    """
    plan = model.plan
    assert plan.disk is not None
    experts = model.expert_counts
    return {
        "bytes_per_token": round(statistics.flash_bytes_per_token), "bytes_for_prompt": statistics.flash_bytes_prompt,
        "pinned_share": round(plan.pinned_share, 4), "wait_share": round(statistics.flash_wait_share, 4),
        "wait_for_prompt_s": round(statistics.flash_wait_prompt_s, 4),
        "bandwidth": round(statistics.flash_bandwidth), "best_bandwidth": round(plan.disk.bandwidth),
        "read_bytes": plan.placement.chunk_bytes, "readers": plan.placement.readers, "direct": model.direct,
        "read_again": model.read_again, **({"experts": asdict(experts)} if experts is not None else {}),
    }


def left_out_use(model: Model) -> dict[str, Any]:
    """What is left out of a model that is loaded to do so: below which threshold, what that costs as measured while
    converting; of experts, how many of how many a token has in each layer, of all that were computed since loading; of
    neurons, the part that stays, and of those that are active, as measured while converting."""
    left_out, experts = model.left_out, model.experts_per_token
    assert left_out is not None
    common = {"threshold": left_out.threshold, "loss_per_token": round(left_out.loss, 5)}
    if isinstance(left_out, NeuronLoss):
        return {**common, "computed": left_out.computed, "recall": left_out.recall}
    return {**common, "experts_per_token": None if experts is None else round(experts, 3),
            "of_experts": model.header.config.experts_per_token}


def speculation_use(statistics: Statistics) -> dict[str, Any]:
    """What guessing brought: `Statistics` explains it. Without the first token, which the prompt's pass brings."""
    return {
        "passes": statistics.passes, "guessed": statistics.guessed, "right": statistics.right,
        "agreement": round(statistics.agreement, 4), "tokens_per_pass": round(statistics.tokens_per_pass, 3),
        "lenient": statistics.lenient, "loss_per_token": round(statistics.loss_per_token, 5),
        "draft_s": round(statistics.draft_s, 4), "verify_s": round(statistics.verify_s, 4),
    }
