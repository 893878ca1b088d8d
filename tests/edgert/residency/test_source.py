"""The seam: whatever fills the table, the engine computes the same, and knows of it no more than `Source` says."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from small_engine import make_engine
from tiny_model import write_bundle

from edgert.bundle import Bundle
from edgert.bundle.header import HEAD
from edgert.engine.session import Session
from edgert.errors import EdgertError, ModelError
from edgert.kernels.records import ABSENT, WAIT
from edgert.residency import weights
from edgert.residency.file import FlashFile
from edgert.residency.region import Region
from edgert.residency.source import ReadHook, Reading, Source
from edgert.residency.stream import Run
from edgert.residency.table import AddressTable


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    path = tmp_path_factory.mktemp("source") / "m.edge"
    with Bundle(write_bundle(path, "q4", size=0.2, num_hidden_layers=2, intermediate_size=200)) as opened:
        yield opened


class OnDemand:
    """A source without threads: reads everything when it is first expected, and keeps it."""

    freed, streams = 0, True

    def __init__(self, file: FlashFile, body: Sequence[Run], head: Sequence[Run], table: AddressTable,
                 **_: Any) -> None:
        self._file, self._runs, self._table = file, [*body, *head], table
        self._regions: list[Region] = []
        self.reading, self.error = Reading(), None
        self.calls: list[str] = []

    def expect(self, heads: int) -> None:
        self.calls.append(f"expect {heads}")
        for run in self._runs[len(self._regions):]:
            region = Region(run.length, "a test's")
            self._file.read(run.offset, region.view(), int(run.ends[-1]))
            self._table.entries[run.entries] = region.address + run.starts
            self._regions.append(region)
            self.reading.bytes += run.length

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def restart(self) -> None:
        self.calls.append("restart")

    def fail(self, error: EdgertError) -> None:
        self.error = self.error or error

    def trace(self, hook: ReadHook) -> None:
        pass

    def close(self) -> None:
        for region in self._regions:
            region.close()


def forward(bundle: Bundle, **options: Any) -> np.ndarray:
    engine, session = make_engine(bundle, **options), Session(bundle.header.config, 8, "f32")
    logits = np.concatenate([engine.forward(session, [3, 1, 4]), engine.forward(session, [5])])
    engine.close()
    return logits.view(np.int32)


def test_another_source_gives_the_same_answer(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = forward(bundle)
    monkeypatch.setattr(weights, "Stream", OnDemand)
    assert np.array_equal(forward(bundle, keep=0.0), expected)
    assert np.array_equal(forward(bundle, keep=0.0, attention=1.0), expected)


def test_what_the_engine_asks_of_a_source(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "Stream", OnDemand)
    engine, session = make_engine(bundle, keep=0.0), Session(bundle.header.config, 64, "f32")
    source: Source = engine.source
    assert isinstance(source, OnDemand)
    engine.forward(session, [1])
    engine.forward(session, [1, 2], [])
    engine.forward(session, [1] * 4, range(4))
    assert source.calls == ["expect 1", "expect 0", "expect 1"]
    assert source.reading.bytes > sum(layout.length for layout in bundle.header.streamable())
    with monkeypatch.context() as patch:
        patch.setattr(engine._team, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.forward(session, [1])
    engine.forward(session, [1])
    assert source.calls[3:] == ["expect 1", "restart", "expect 1"]
    source.fail(ModelError("no more"))
    with pytest.raises(ModelError, match="no more"):
        engine.forward(session, [1])
    engine.close()


def interrupted(program: np.ndarray) -> bool:
    raise KeyboardInterrupt


def test_absent_groups_take_no_part(bundle: Bundle) -> None:
    """Prefill and single tokens agree, and a layer whose groups are all absent adds nothing that is not finite."""
    every, without = [], []
    for absent, found in ((False, every), (True, without)):
        for tokens in ([[3, 1, 4]], [[3], [1], [4]]):
            engine, session = make_engine(bundle), Session(bundle.header.config, 8, "f32")
            if absent:
                table = engine._weights._table
                for layer in bundle.header.neurons:
                    table.entries[table.index(layer.section):table.index(layer.section, layer.groups - 1)] = ABSENT
            found.append([engine.forward(session, part) for part in tokens][-1])
            engine.close()
    assert np.array_equal(every[0], every[1]) and np.array_equal(without[0], without[1])
    assert not np.array_equal(every[0], without[0])


def test_the_table_has_an_entry_and_a_counter_for_each_unit(bundle: Bundle) -> None:
    layouts = bundle.header.streamable()
    assert [layout.name for layout in layouts][-2:] == ["layers.1.details", HEAD]
    table = AddressTable({layout.name: layout.count for layout in layouts})
    assert len(table.entries) == len(table.counters) == sum(layout.count for layout in layouts)
    assert (table.entries == WAIT).all() and not table.counters.any()
    for layout in layouts:
        at = table.index(layout.name, layout.count - 1)
        table.entries[at] = at + 1
    for layout in layouts:
        first = table.index(layout.name)
        assert table.addresses(layout.name) == (table.entries[first:].ctypes.data, table.counters[first:].ctypes.data)
        assert table.entries[first + layout.count - 1] == first + layout.count
