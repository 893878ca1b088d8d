"""Opening a model: what is planned with."""

from pathlib import Path

from tiny_model import write_bundle

from edgert.bundle import Bundle
from edgert.engine.pool import block_bytes
from edgert.engine.retention import MIXED, POLICIES
from edgert.memory.plan import Planner
from edgert.opening import plan_cache


def test_what_is_planned_is_the_context_that_there_is_room_for(tmp_path: Path) -> None:
    """Also by `edgert plan`, which is told the same."""
    with Bundle(write_bundle(tmp_path / "m.edge", max_position_embeddings=4096)) as bundle:
        header = bundle.header
        room, planner = plan_cache(header, POLICIES[MIXED], process=0, context=4096, cache_type="q8", chunk=64,
                                   threads=1, memory=20 * block_bytes(header.config, "q8"), budget=1 << 30, parallel=1)
        assert room.low and room.context < 4096
        alone = Planner(header, process=0, context=room.context, cache_type="q8", chunk=64, threads=1, room=room)
        assert planner.whole == alone.whole
