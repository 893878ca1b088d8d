"""The timeline of computing."""

import json
from pathlib import Path

from small_engine import make_engine
from tiny_model import write_bundle

from edgert.bundle import Bundle
from edgert.engine.session import Session
from edgert.engine.tracing import Trace


def test_passes_and_drafts_are_told_apart(tmp_path: Path) -> None:
    with Bundle(write_bundle(tmp_path / "m.edge", intermediate_size=4096, vocab_size=600)) as bundle:
        engine = make_engine(bundle, keep=0.5, attention=1.0)
        trace = Trace(tmp_path / "trace.json")
        engine.trace(trace)
        session = Session(bundle.header.config, 16, "f32")
        engine.forward(session, [1, 2, 3])
        engine.draft(session, 4)
        engine.forward(session, [5])
        engine.close()
        trace.close()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    (lane,) = (e["tid"] for e in events if e["name"] == "thread_name" and e["args"]["name"] == "passes")
    assert [e["name"] for e in events if e["ph"] == "X" and e["tid"] == lane] == ["3 tokens", "draft", "1 token"]
