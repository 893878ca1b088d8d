"""What the page beside the chat shows, and its slider: the model's state, and loading it with another budget."""

from dataclasses import asdict
from typing import Any

from edgert.watching import used_bytes

from .service import EngineService


def status(service: EngineService, name: str, embeddings: int) -> dict[str, Any]:
    """What the model is doing now. Nothing waits for it. While it loads anew, what was last known. embeddings: bytes
    that their process uses."""
    watch, counts = service.watch, service.counts
    values: dict[str, Any] = {
        "model": name, "state": service.state, "error": None if service.error is None else str(service.error),
        "used": used_bytes(watch) + embeddings, "queue": service.waiting, "tokens": counts.tokens,
        "drafted": counts.drafted,
        "accepted": counts.accepted}
    if watch is None:
        return {**values, "budget": 0, "smallest": 0, "whole": 0, "parts": {},
                "streaming": {"bytes": 0, "bandwidth": None}, "layers": [], "reading": None, "experts": None,
                "left_out": None, "threads": 0, "context": 0, "memory_total": 0}
    flash = watch.flash
    return {**values, "budget": watch.budget, "smallest": watch.smallest, "whole": watch.whole, "parts": watch.parts,
            "streaming": {"bytes": flash.read, "bandwidth": flash.bandwidth},
            "layers": [{"pinned": share} for share in watch.pinned],
            "reading": flash.reading if service.answering else None,
            "experts": None if watch.experts is None else asdict(watch.experts),
            "left_out": None if watch.left_out is None else {
                "of": "experts" if watch.of_experts else "neurons", "threshold": watch.left_out.threshold,
                "loss_per_token": round(watch.left_out.loss, 5)},
            "threads": watch.threads, "context": watch.context, "memory_total": watch.memory_total}
