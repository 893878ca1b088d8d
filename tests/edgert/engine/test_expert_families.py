"""Mixtures of experts with more than experts: what all tokens share, biases, sinks, layers without experts; and BitNet,
all of whose layers are such. Wherever weights come from the bits are the same, and the plan and its rehearsal know such
models."""

from pathlib import Path

import numpy as np
import pytest
from small_engine import make_engine

from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.engine.session import Session
from edgert.kernels import native
from edgert.measuring.compute import Rehearsal
from edgert.memory.plan import Planner
from edgert.residency.device import Device

MODELS = Path(__file__).parents[2] / "golden" / "models"
TOKENS = np.random.default_rng(0).integers(0, 263, 40).tolist()


@pytest.mark.parametrize("name", ["deepseek", "qwen2moe", "granitemoeshared", "gptoss", "bitnet"])
def test_the_same_wherever_weights_come_from(tmp_path: Path, name: str) -> None:
    convert(str(MODELS / name), tmp_path / "m.edge", "q4")
    with Bundle(tmp_path / "m.edge") as bundle:
        bundle.load_for(64)
        shared = [layout.name for layout in bundle.header.streamable() if ".shared_expert." in layout.name]
        # They are pinned, or read in order, like attention's matrices.
        assert bool(shared) == (name not in ("gptoss", "bitnet"))
        every = []
        for keep, rest, threads, pieces in ((1.0, 1.0, 1, 40), (0.0, 0.0, 2, 40), (0.4, 0.0, 2, 1), (0.0, 1.0, 3, 7)):
            engine = make_engine(bundle, threads=threads, keep=keep, attention=rest, head=rest)
            engine._team.set(patience=20 * 10 ** 9)
            session = Session(bundle.header.config, 64, "f32")
            parts = [TOKENS[at:at + pieces] for at in range(0, len(TOKENS), pieces)]
            every.append(np.concatenate([engine.forward(session, part, range(len(part))) for part in parts]))
            session.close()
            engine.close()
        assert np.isfinite(every[0]).all()
        for logits in every[1:]:
            assert np.array_equal(logits.view(np.int32), every[0].view(np.int32))


@pytest.mark.parametrize("name", ["deepseek", "gptoss", "bitnet"])
def test_planned_and_rehearsed(tmp_path: Path, name: str) -> None:
    convert(str(MODELS / name), tmp_path / "m.edge", "f32")
    device = Device("a test's", True, 1 << 16, 2, 1e9, 1e-4, [])
    with Bundle(tmp_path / "m.edge") as bundle:
        planner = Planner(bundle.header, process=0, context=64, cache_type="f32", chunk=64, threads=2)
        plan = planner.plan(planner.smallest(device), lambda: device)
        assert plan.needed <= planner.smallest(device)
        with Rehearsal(bundle.header, native.library(), threads=1, cache_type="f32") as rehearsal:
            assert min(rehearsal.seconds(tokens)[0] for tokens in (1, 4)) > 0
