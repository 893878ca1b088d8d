"""What a dashboard is shown of a model."""

from pathlib import Path

import edgert
from edgert.memory.budget import process_bytes
from edgert.residency.region import Region
from edgert.watching import Flash, Watch, used_bytes


def test_a_model_in_memory(smollm2: Path) -> None:
    with edgert.load(smollm2, threads=1, context=64) as model:
        watch = Watch(model)
        assert watch.pinned == [1.0] * model.header.config.num_hidden_layers
        assert watch.flash == Flash(read=0, bandwidth=None, reading=None)
        assert watch.smallest < watch.whole <= watch.budget


def test_a_model_that_is_streamed(smollm2: Path) -> None:
    """What is said of its layers is what is pinned, and what is read."""
    with edgert.load(smollm2, threads=1, context=64) as whole:
        room = sum(whole.plan.parts.values()) - whole.plan.parts["process"] - (40 << 20)
    with edgert.load(smollm2, memory=process_bytes() + Region.promised + room, threads=1, context=64) as model:
        watch = Watch(model)
        assert model.plan.disk is not None and watch.flash.bandwidth == model.plan.disk.bandwidth
        layers = model.header.streamable()[:-1]  # without the output head
        pinned = sum(layout.length - layout.bytes_of(model.plan.placement.pinned[layout.name]) for layout in layers)
        sizes = sum(layout.length for layout in layers) / len(watch.pinned)
        assert 0 < sum(watch.pinned) < len(watch.pinned)
        assert abs(sum(watch.pinned) * sizes - pinned) < 0.01 * pinned
        model.generate("Once upon a time", max_tokens=3).text()
        seen = watch.flash
        assert seen.read == model.read_bytes > 0 and seen.reading in {*range(len(watch.pinned)), None}
        watch.let_go()
    assert watch.flash.read == seen.read, "what was seen last stays"


def test_memory_in_use() -> None:
    """Of this process, or of a control group that it has for itself."""
    assert 0.5 < used_bytes() / process_bytes() < 2
