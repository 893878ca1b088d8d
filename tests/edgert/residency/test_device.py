"""The cost model of a disk: measured sanely, chosen as promised, kept between starts."""

import dataclasses
import json
import math
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgert.commands import doctor
from edgert.errors import BundleError
from edgert.residency import device
from edgert.residency.device import Device, device_of, probe, stored_devices

FOUND = Device("disk (ext4)", True, 512 << 10, 4, 1.75e9, 90e-6,
               [{"chunk": 512 << 10, "depth": 4, "bytes_per_s": 1_750_000_000}])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flash") / "bundle.edge"
    path.write_bytes(random.Random(0).randbytes(12 << 20) + b"end")
    return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(device, "_store", lambda: tmp_path / "cache" / "devices.json")
    return tmp_path / "cache" / "devices.json"


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths that were probed; what is found there is always FOUND, and always enough to keep."""
    paths: list[Path] = []
    monkeypatch.setattr(device, "probe", lambda path: paths.append(path) or FOUND)
    monkeypatch.setattr(device, "ENOUGH", 0)
    return paths


def test_probing_finds_something_sane(path: Path) -> None:
    found = probe(path)
    points = {(point["chunk"], point["depth"]): point["bytes_per_s"] for point in found.grid}
    assert found.name
    assert 0 < found.latency_s < 60
    assert (found.chunk_bytes, found.depth) in points
    assert 0 < found.bandwidth < math.inf
    assert found.chunk_bytes % 4096 == 0


@pytest.mark.parametrize("size", [1, 5000, 100_000, 3_000_000])
def test_probing_a_small_file(tmp_path: Path, size: int) -> None:
    (small := tmp_path / "small").write_bytes(bytes(size))
    found = probe(small)
    assert 0 < found.bandwidth < math.inf


def test_a_slow_device_is_not_given_long_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = os.preadv

    def slow(handle: int, buffers: list[memoryview], offset: int) -> int:
        time.sleep(sum(map(len, buffers)) / 2e6)
        return system(handle, buffers, offset)

    monkeypatch.setattr(os, "preadv", slow)
    monkeypatch.setattr(device, "_BOX_S", 1.0)
    assert max(point["chunk"] * point["depth"] for point in probe(path).grid) <= 1 << 20


def test_what_cannot_be_probed(tmp_path: Path) -> None:
    (empty := tmp_path / "empty").touch()
    with pytest.raises(BundleError, match="is empty"):
        probe(empty)
    for call in (probe, device_of):
        with pytest.raises(BundleError, match=r"none: cannot be opened: no such file"):
            call(tmp_path / "none")


@given(st.dictionaries(st.tuples(st.sampled_from([1, 4, 16, 32]), st.sampled_from([1, 2, 4, 8])),
                       st.floats(1, 1e10), min_size=1))
def test_the_least_memory_that_is_nearly_the_fastest(rates: dict[tuple[int, int], float]) -> None:
    chosen = device.choose(rates)
    good = [point for point, rate in rates.items() if rate >= 0.95 * max(rates.values())]
    assert chosen in good
    assert chosen[0] * chosen[1] == min(chunk * depth for chunk, depth in good)


def test_a_device_is_probed_once(path: Path, store: Path, probed: list[Path]) -> None:
    assert stored_devices() == []
    assert [device_of(path), device_of(path.parent), device_of(str(path))] == [FOUND] * 3
    assert probed == [path]
    assert stored_devices() == [FOUND]
    assert device_of(path, again=True) == FOUND
    assert len(probed) == 2
    assert [file.name for file in store.parent.iterdir()] == ["devices.json"]


def test_small_files_are_not_kept(path: Path, store: Path, probed: list[Path],
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "ENOUGH", 32 << 20)
    assert device_of(path) == FOUND
    assert stored_devices() == []


def damaged(content: dict[str, Any], **changes: Any) -> str:
    return json.dumps({**content, "devices": {key: {**values, **changes}
                                              for key, values in content["devices"].items()}})


def test_a_damaged_store_is_none(path: Path, store: Path, probed: list[Path]) -> None:
    device_of(path)
    content = json.loads(store.read_bytes())
    assert content["version"] == 1
    for text in ("", "{", "[]", "3", "[" * 100_000, "\xff", json.dumps({**content, "version": 2}), '{"version": 1}',
                 json.dumps({**content, "devices": []}), json.dumps({**content, "devices": {"x": 1}}),
                 damaged(content, depth=0), damaged(content, depth="4"), damaged(content, chunk_bytes=1000),
                 damaged(content, bandwidth=math.nan), damaged(content, bandwidth=0.0), damaged(content, name=None),
                 damaged(content, grid=[1]), damaged(content, grid=7), damaged(content, colour="red")):
        store.write_text(text, encoding="latin-1")
        assert stored_devices() == [], text[:100]
    before = len(probed)
    assert device_of(path) == FOUND
    assert len(probed) == before + 1
    assert stored_devices() == [FOUND]


def test_a_store_that_cannot_be_written_is_no_error(path: Path, tmp_path: Path, probed: list[Path],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(device, "_store", lambda: tmp_path / "file" / "devices.json")
    assert device_of(path) == FOUND
    assert stored_devices() == []


def test_the_store_is_beside_the_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path))
    assert device._store() == tmp_path / "devices.json"


def test_file_systems_are_told_apart(path: Path) -> None:
    key, name = device._identity(path)
    assert (key, name) == device._identity(path.parent)
    if Path("/proc/self/mountinfo").exists():
        assert key != device._identity("/proc/self/mountinfo")[0]
        assert device._identity("/proc/self/mountinfo")[1] == "proc"


def test_doctor_measures_the_disk_of_a_bundle(path: Path, store: Path, probed: list[Path]) -> None:
    runner = CliRunner()
    assert "flash: not measured yet: edgert doctor BUNDLE" in squeezed(runner.invoke(doctor.command).output)
    line = "flash: disk (ext4): 1.75 GB/s in reads of 512 KiB, 4 at once; 90 µs for 4 KiB; direct"
    assert line in squeezed(runner.invoke(doctor.command, [str(path)]).output)
    assert probed == [str(path)]
    assert line in squeezed(runner.invoke(doctor.command).output)
    assert json.loads(runner.invoke(doctor.command, ["--json"]).output)["flash"] == [dataclasses.asdict(FOUND)]
    assert len(probed) == 1


def test_doctor_on_a_disk_without_direct_reading(path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = dataclasses.replace(FOUND, direct=False, chunk_bytes=2 << 20, depth=1, bandwidth=19.26e6)
    monkeypatch.setattr(device, "probe", lambda path: slow)
    done = CliRunner().invoke(doctor.command, [str(path)])
    assert "19.3 MB/s in reads of 2 MiB, one at a time; 90 µs for 4 KiB; through the page cache" in done.output
    assert "\ndisk (ext4) refuses direct reading; " in done.output
    assert "missing:" not in done.output
    assert done.exit_code == 0


def test_doctor_on_no_file(tmp_path: Path, store: Path) -> None:
    done = CliRunner().invoke(doctor.command, [str(tmp_path / "none.edge")])
    assert isinstance(done.exception, BundleError)


def squeezed(output: str) -> str:
    """Names and values with a colon between them instead of spaces."""
    return "\n".join(": ".join(part.strip() for part in line.split("  ", 1)) for line in output.splitlines())
